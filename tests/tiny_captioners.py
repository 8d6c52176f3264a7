"""Untrained models that make text of an image, saved as transformers saves them."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

PIXELS = 32
SPECIAL = ["<pad>", "<s>", "</s>", "<image>"]
PAD, START, END, IMAGE = range(4)
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = LAYERS | {"image_size": PIXELS, "patch_size": 8, "projection_dim": 32}


def save_blip(folder: Path) -> Path:
    """Captions a photo without being asked."""
    tokenizer = _tokenizer()
    BlipProcessor(BlipImageProcessor(size={"height": PIXELS, "width": PIXELS}), tokenizer).save_pretrained(folder)
    text = LAYERS | {"vocab_size": len(tokenizer), "encoder_hidden_size": 32, "max_position_embeddings": 256}
    # Nothing ends its text but this; sep_token_id is what BLIP ends with.
    ids = {"bos_token_id": START, "pad_token_id": PAD, "sep_token_id": END, "eos_token_id": END}
    config = BlipConfig(text_config=text | ids | {"projection_dim": 32}, vision_config=VISION, projection_dim=32)
    _save(BlipForConditionalGeneration, config, folder)
    return folder


def save_llava(folder: Path) -> Path:
    """Is asked, and repeats the question before its answer."""
    tokenizer = _tokenizer()
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)
    text = LAYERS | {"model_type": "llama", "vocab_size": len(tokenizer), "num_key_value_heads": 2}
    ids = {"bos_token_id": START, "pad_token_id": PAD, "eos_token_id": END}
    config = LlavaConfig(
        text_config=text | ids,
        vision_config=VISION | {"model_type": "clip_vision_model"},
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    _save(LlavaForConditionalGeneration, config, folder)
    return folder


def _save(kind: type, config: BlipConfig | LlavaConfig, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Of single letters."""
    letters = [*string.ascii_letters, " ", "'", ",", "."]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        extra_special_tokens={"image_token": "<image>"},
    )
