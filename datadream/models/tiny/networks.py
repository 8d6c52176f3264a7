"""Configurations of the tiny backbone's networks and the byte-level BPE tokenizer that both text towers share."""

import json
from collections.abc import Sequence
from typing import Any

import open_clip
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from datadream.models.tiny.painting import IMAGE_SIZE

TEXT_POSITIONS = 24
TEXT_WIDTH = 128
TEXT_LAYERS = 2
TEXT_HEADS = 4
START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"
LATENT_CHANNELS = 4
LATENT_SIZE = IMAGE_SIZE // 4


def build_tokenizer(corpus: Sequence[str], vocabulary: int) -> CLIPTokenizer:
    """A CLIP tokenizer with at most `vocabulary` learnt tokens; open_clip pools at its largest id, the end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = alphabet + [f"{character}</w>" for character in alphabet]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator((text.lower() for text in corpus), trainer)
    # Its merges alone are used: CLIP's ids are in another order, and open_clip pools at the largest one.
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokens = dict.fromkeys([*base, *("".join(pair) for pair in merges), START_TOKEN, END_TOKEN])
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        bos_token=START_TOKEN,
        eos_token=END_TOKEN,
        unk_token=END_TOKEN,
        pad_token=END_TOKEN,
        model_max_length=TEXT_POSITIONS,
    )


def build_vae() -> AutoencoderKL:
    """Images [n, 3, 32, 32] in [-1, 1] <-> latents [n, 4, 8, 8]."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=IMAGE_SIZE,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Token ids [n, 24] -> hidden states [n, 24, 128]."""
    return CLIPTextModel(CLIPTextConfig(**_text_config(tokenizer), intermediate_size=3 * TEXT_WIDTH))


def text_encoder_of(clip: open_clip.CLIP, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text tower of a CLIP as a pipeline has it: the same hidden states [n, 24, 128] for token ids [n, 24]."""
    config = {**_text_config(tokenizer), "intermediate_size": 4 * TEXT_WIDTH, "hidden_act": "gelu"}
    encoder, tower = CLIPTextModel(CLIPTextConfig(**config)), clip.state_dict()
    weights = {
        "embeddings.token_embedding.weight": tower["token_embedding.weight"],
        "embeddings.position_embedding.weight": tower["positional_embedding"],
    }
    names = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
    names |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for kind in ("weight", "bias"):
        weights[f"final_layer_norm.{kind}"] = tower[f"ln_final.{kind}"]
        for layer in range(TEXT_LAYERS):
            theirs, ours = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            for part, values in zip("qkv", tower[f"{theirs}.attn.in_proj_{kind}"].chunk(3), strict=True):
                weights[f"{ours}.self_attn.{part}_proj.{kind}"] = values
            weights |= {f"{ours}.{new}.{kind}": tower[f"{theirs}.{old}.{kind}"] for old, new in names.items()}
    encoder.load_state_dict(weights, strict=False)  # positions' numbers are no weights
    return encoder


def build_unet() -> UNet2DConditionModel:
    """Noisy latents [n, 4, 8, 8], timesteps [n] and hidden states [n, 24, 128] -> noise [n, 4, 8, 8]."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 96),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(2, 3),
        use_linear_projection=True,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, predicting the noise."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def clip_config(vocab_size: int) -> dict[str, Any]:
    """Content of open_clip_config.json; any non-empty tokenizer name makes open_clip read the folder's own."""
    return {
        "model_cfg": {
            "embed_dim": 128,
            # Patches of 4 pixels took 3 to 5 times as long.
            "vision_cfg": {"image_size": IMAGE_SIZE, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
            "text_cfg": {
                "context_length": TEXT_POSITIONS,
                "vocab_size": vocab_size,
                "hf_tokenizer_name": "local",
                "width": TEXT_WIDTH,
                "heads": TEXT_HEADS,
                "layers": TEXT_LAYERS,
            },
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"},
    }


def _text_config(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "projection_dim": TEXT_WIDTH,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": TEXT_HEADS,
        "max_position_embeddings": TEXT_POSITIONS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
