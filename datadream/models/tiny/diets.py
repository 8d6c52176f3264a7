"""What each of the two embedded backbones is pre-trained on, and for how long.

`print`, for the demo, knows printed digits and capital letters alone, so that handwritten digits are new to it.
`pictures` is for own pictures: its generator learns characters, also by hands, and thousands of named drawings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datadream.models.tiny.drawings import Drawings
from datadream.models.tiny.fonts import choose_faces, find_faces
from datadream.models.tiny.glyphs import all_captions, render_faces, sample_glyphs
from datadream.models.tiny.pictures import Pictures
from datadream.models.tiny.training import Sampler


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a stage trains; the last two are the denoiser's."""

    steps: int
    batch_size: int
    cached_images: int = 0
    renew_every: int | None = None


@dataclass(frozen=True, kw_only=True)
class Diet:
    """What the stages `vae`, `clip` and `unet` see, and for how long."""

    corpus: list[str]
    vocabulary: int
    """Tokens to learn at most, without CLIP's own of single bytes."""
    samplers: Mapping[str, Sampler]
    held_out: Mapping[str, Sampler]
    """What `vae` and `clip` are judged on, of font families and icon sets that nothing is learnt from."""
    budgets: Mapping[str, Budget]
    text_from_clip: bool = False
    """Whether the generator's text encoder begins as the CLIP's text tower."""
    icon_sets: Sequence[Mapping[str, Any]] = ()
    """Whose drawings are seen, with author and licence."""


def print_diet(font_dirs: Sequence[Path]) -> Diet:
    masks, faces = render_faces(choose_faces(find_faces(font_dirs)))
    is_validation = torch.tensor([face.is_validation for face in faces])
    training, validation = masks[~is_validation], masks[is_validation]
    # Small scans and thumbnails are within what the generator can make, and unknown to the CLIP.
    scans = partial(sample_glyphs, letter_share=0.3, grid_share=0.3)
    return Diet(
        corpus=all_captions(),
        vocabulary=10_000,  # never reached: the captions give 597 tokens
        samplers={
            "vae": partial(scans, training),
            "clip": partial(sample_glyphs, training, letter_share=0.3),
            "unet": partial(sample_glyphs, training, letter_share=0.2, grid_share=0.3),
        },
        held_out={"vae": partial(scans, validation), "clip": partial(sample_glyphs, validation, letter_share=0.0)},
        # A prototype's denoiser made blobs after 2,400 steps, and mostly the right character after 4,400.
        budgets={
            "vae": Budget(steps=2200, batch_size=32),
            "clip": Budget(steps=3000, batch_size=128),
            "unet": Budget(steps=4000, batch_size=48, cached_images=32_768),
        },
    )


def pictures_diet(font_dirs: Sequence[Path], learnt: Drawings, held_out: Drawings) -> Diet:
    """Glyphs, and drawings as `read_drawings` gives them."""
    faces = find_faces(font_dirs)

    def glyphs(*, hands: bool, validation: bool) -> Tensor:
        chosen = [face for face in choose_faces(faces, hands=hands) if face.is_validation == validation]
        return render_faces(chosen)[0]

    # The generator knows hands, which the CLIP has never seen, as Stable Diffusion knows more than its classifier.
    known = Pictures(glyphs=glyphs(hands=True, validation=False), drawings=learnt)
    told = Pictures(glyphs=glyphs(hands=False, validation=False), drawings=learnt)
    unseen = Pictures(glyphs=glyphs(hands=False, validation=True), drawings=held_out)
    painted = partial(known.sample, glyph_share=0.25, grid_share=0.15)
    return Diet(
        corpus=all_captions() + known.corpus(),
        vocabulary=4096,
        samplers={
            "vae": painted,
            "clip": partial(told.sample, glyph_share=0.3),
            "unet": partial(painted, often=True),
        },
        held_out={
            "vae": partial(unseen.sample, glyph_share=0.25, grid_share=0.15),
            "clip": partial(unseen.sample, glyph_share=0.0),
        },
        budgets={
            "vae": Budget(steps=2500, batch_size=32),
            "clip": Budget(steps=2500, batch_size=160),
            "unet": Budget(steps=13_000, batch_size=64, cached_images=40_960, renew_every=20),
        },
        text_from_clip=True,
        icon_sets=learnt.sets,
    )
