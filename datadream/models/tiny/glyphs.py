"""Digits and capital letters as masks out of fonts, and painted as captioned images."""

import string
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from datadream.models.tiny.fonts import Face
from datadream.models.tiny.painting import (
    COLOR_NAMES,
    EXTENT,
    MASK_SIZE,
    Batch,
    caption,
    captions,
    colors,
    ink_and_paper,
    through_grid,
    warp,
)

DIGIT_NAMES = tuple(
    f"digit {word}" for word in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
)
CLASS_NAMES = DIGIT_NAMES + tuple(f"letter {letter}" for letter in string.ascii_uppercase)
CHARACTERS = string.digits + string.ascii_uppercase


def render_face(face: Face) -> Tensor | None:
    """Masks [36, 64, 64] uint8 of the face's CHARACTERS; None where a glyph is missing or two look the same."""
    font = ImageFont.truetype(str(face.path), 2 * EXTENT)
    masks = [_render_character(font, character) for character in CHARACTERS]
    # A code point that no font has: what it shows stands for every glyph that the face lacks.
    missing_glyph = _render_character(font, "\U0010fffe")
    pixels = [mask.tobytes() for mask in masks if mask is not None]
    if len(set(pixels)) < len(CHARACTERS) or (missing_glyph and missing_glyph.tobytes() in pixels):
        return None
    return torch.stack([torch.frombuffer(bytearray(p), dtype=torch.uint8).view(MASK_SIZE, MASK_SIZE) for p in pixels])


def render_faces(faces: Sequence[Face]) -> tuple[Tensor, list[Face]]:
    """Masks [faces, 36, 64, 64] uint8 and the faces they belong to: those that render every character distinctly."""
    rendered = [(face, masks) for face in faces if (masks := render_face(face)) is not None]
    if not rendered:
        raise ValueError(
            f"none of {len(faces)} faces has distinct glyphs for {CHARACTERS!r}. Pass other font folders."
        )
    return torch.stack([masks for _, masks in rendered]), [face for face, _ in rendered]


def sample_glyphs(
    masks: Tensor, n: int, rng: torch.Generator, *, letter_share: float, grid_share: float = 0.0
) -> Batch:
    """Sample n augmented, coloured and captioned glyphs from masks [faces, 36, 64, 64] uint8."""
    is_letter = torch.rand(n, generator=rng) < letter_share
    digits = torch.randint(len(DIGIT_NAMES), (n,), generator=rng)
    letters = torch.randint(len(DIGIT_NAMES), len(CLASS_NAMES), (n,), generator=rng)
    labels = torch.where(is_letter, letters, digits)
    faces = torch.randint(len(masks), (n,), generator=rng)
    ink_share = warp(masks[faces, labels].float().div(255).unsqueeze(1), rng)
    ink, paper = ink_and_paper(n, rng)
    ink_color, paper_color = (colors(color, rng) for color in (ink, paper))
    images = through_grid(torch.lerp(paper_color, ink_color, ink_share), grid_share, rng)
    subjects = [CLASS_NAMES[label] for label in labels.tolist()]
    return Batch(images=images.mul(2).sub(1), subjects=subjects, captions=captions(subjects, ink, paper, rng))


def class_prompts() -> list[str]:
    """The plain caption of each class, in CLASS_NAMES order."""
    return [caption(name) for name in CLASS_NAMES]


def all_captions() -> list[str]:
    """Every caption that sampling can produce, sorted: the tokenizer's corpus."""
    named = ("", *COLOR_NAMES)
    return sorted({caption(name, ink, paper) for name in CLASS_NAMES for ink in named for paper in named})


def _render_character(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    left, top, right, bottom = (round(edge) for edge in font.getbbox(character))
    if right <= left or bottom <= top:
        return None
    drawing = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(drawing).text((-left, -top), character, fill=255, font=font)
    if (box := drawing.getbbox()) is None:
        return None
    drawing = drawing.crop(box)
    scale = EXTENT / max(drawing.size)
    width, height = (max(1, round(side * scale)) for side in drawing.size)
    mask = Image.new("L", (MASK_SIZE, MASK_SIZE))
    mask.paste(
        drawing.resize((width, height), Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BICUBIC),
        ((MASK_SIZE - width) // 2, (MASK_SIZE - height) // 2),
    )
    return mask
