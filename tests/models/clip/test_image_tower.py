"""An image tower that ends with the class token alone gives what plain open_clip gives."""

from __future__ import annotations

import open_clip
import pytest
import torch

from datadream.models.clip.image_tower import encode_images
from datadream.models.clip.trainable import make_trainable, trainable_parameters, trainable_state

TEXT = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}


@pytest.mark.parametrize(
    "vision",
    [
        VIT,
        VIT | {"final_ln_after_pool": True, "no_ln_pre": True, "ls_init_value": 0.1},
        VIT | {"pool_type": "avg"},
        VIT | {"attentional_pool": True, "attn_pooler_heads": 4},
        VIT | {"block_type": "custom"},
        {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
    ],
    ids=["ViT", "norms elsewhere", "mean pooling", "pooling by attention", "other blocks", "ResNet"],
)
def test_features_and_gradients_equal_open_clips(vision):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=TEXT, quick_gelu=True).eval()
        make_trainable(model, rank=4, alpha=8, projections=("q", "k", "v", "out"), seed=0)
        learning = trainable_parameters(model)
        for parameter in learning:
            parameter.data += 0.1 * torch.randn_like(parameter)
        images, weights = torch.randn(5, 3, 32, 32), torch.randn(5, 16)
    outcomes = []
    for features in (model.encode_image(images, normalize=True), encode_images(model, images)):
        gradients = torch.autograd.grad((features * weights).sum(), learning, allow_unused=True)
        outcomes.append((features, [gradient for gradient in gradients if gradient is not None]))
    torch.testing.assert_close(*outcomes, atol=1e-5, rtol=1e-5)


def test_cocas_images_are_its_pooled_features_and_its_decoder_learns_nothing():
    pooled = {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
    text = TEXT | {"embed_cls": True, "output_tokens": True}
    model = open_clip.CoCa(embed_dim=16, multimodal_cfg=TEXT, text_cfg=text, vision_cfg=VIT | pooled).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encode_images(model, images), model.encode_image(images, normalize=True))
    make_trainable(model, rank=4, alpha=8, projections=("q", "k", "v", "out"), seed=0)
    assert {name.split(".")[0] for name in trainable_state(model)} == {"visual", "text"}


def test_the_last_block_runs_for_the_class_token_alone():
    model = open_clip.CLIP(embed_dim=16, vision_cfg=VIT, text_cfg=TEXT).eval()
    seen = []
    for block in model.visual.transformer.resblocks:
        block.mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    encode_images(model, torch.randn(2, 3, 32, 32))
    assert seen == [17, 17, 1]
