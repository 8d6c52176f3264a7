"""Render digits and capital letters from fonts as 32x32 RGB images with captions.

Masks are rendered once per face; geometry, colour and blur are then batched tensor operations, which keeps rendering
far cheaper than a training step. Every random choice comes from the generator passed in.
"""

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from datadream.models.tiny.fonts import Face

IMAGE_SIZE = 32
MASK_SIZE = 64
# Longest side of an unaugmented glyph inside its mask, in pixels.
GLYPH_EXTENT = 48

DIGIT_NAMES = tuple(
    f"digit {word}" for word in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
)
CLASS_NAMES = DIGIT_NAMES + tuple(f"letter {letter}" for letter in string.ascii_uppercase)
CHARACTERS = string.digits + string.ascii_uppercase
TEMPLATE = "a photo of a {}"

PALETTE = {
    "black": (0.03, 0.03, 0.03),
    "white": (0.97, 0.97, 0.97),
    "gray": (0.5, 0.5, 0.5),
    "red": (0.85, 0.1, 0.1),
    "green": (0.1, 0.65, 0.15),
    "blue": (0.1, 0.2, 0.85),
    "yellow": (0.95, 0.9, 0.1),
    "orange": (0.95, 0.55, 0.05),
    "purple": (0.5, 0.1, 0.6),
    "pink": (0.97, 0.6, 0.75),
    "cyan": (0.1, 0.8, 0.85),
    "brown": (0.45, 0.25, 0.1),
}
COLOR_NAMES = tuple(PALETTE)
COLOR_JITTER = 0.06
# Smallest luminance gap between ink and paper, so that every glyph can be read.
MIN_CONTRAST = 0.3
WHITE_ON_BLACK_SHARE = 0.35
BLACK_ON_WHITE_SHARE = 0.1
BLUR_SIZES = range(8, 17)
MAX_ROTATION = math.radians(12)
MAX_SHEAR = 0.15
SCALE_RANGE = (0.75, 1.25)
WIDTH_RANGE = (0.8, 1.15)
# As a share of the image's half side.
MAX_SHIFT = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class GlyphBatch:
    """Rendered glyphs: `images` [n, 3, 32, 32] in [-1, 1], `labels` [n] indexing CLASS_NAMES, n `captions`."""

    images: Tensor
    labels: Tensor
    captions: list[str]


def render_face(face: Face) -> Tensor | None:
    """Masks [36, 64, 64] uint8 of the face's CHARACTERS; None where a glyph is missing or two look the same."""
    font = ImageFont.truetype(str(face.path), 2 * GLYPH_EXTENT)
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
    masks: Tensor, n: int, rng: torch.Generator, *, letter_share: float, blur_share: float = 0.0
) -> GlyphBatch:
    """Sample n augmented, coloured and captioned glyphs from masks [faces, 36, 64, 64] uint8."""
    is_letter = torch.rand(n, generator=rng) < letter_share
    digits = torch.randint(len(DIGIT_NAMES), (n,), generator=rng)
    letters = torch.randint(len(DIGIT_NAMES), len(CLASS_NAMES), (n,), generator=rng)
    labels = torch.where(is_letter, letters, digits)
    faces = torch.randint(len(masks), (n,), generator=rng)
    ink_share = _warp(masks[faces, labels].float().div(255).unsqueeze(1), rng)
    ink, paper = _sample_colors(n, rng)
    ink_color, paper_color = (_jittered(color, rng)[..., None, None] for color in (ink, paper))
    images = torch.lerp(paper_color, ink_color, ink_share)
    # A share of the images goes through a coarse grid, as small scans and thumbnails have.
    is_blurred = torch.rand(n, generator=rng) < blur_share
    sizes = torch.randint(BLUR_SIZES.start, BLUR_SIZES.stop, (n,), generator=rng)
    for size in BLUR_SIZES:
        chosen = is_blurred & (sizes == size)
        coarse = F.interpolate(images[chosen], size=size, mode="area")
        images[chosen] = F.interpolate(coarse, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
    # 60 % of the captions are plain, 20 % name the ink alone, 10 % ink and paper, 10 % the paper alone.
    kinds = torch.rand(n, generator=rng).tolist()
    captions = [
        _caption(CLASS_NAMES[label], COLOR_NAMES[i] if kind < 0.3 else "", COLOR_NAMES[p] if 0.2 <= kind < 0.4 else "")
        for label, i, p, kind in zip(labels.tolist(), ink.tolist(), paper.tolist(), kinds, strict=True)
    ]
    return GlyphBatch(images=images.mul(2).sub(1), labels=labels, captions=captions)


def class_prompts() -> list[str]:
    """The plain caption of each class, in CLASS_NAMES order."""
    return [TEMPLATE.format(name) for name in CLASS_NAMES]


def all_captions() -> list[str]:
    """Every caption that sampling can produce, sorted: the tokenizer's corpus."""
    colors = ("", *COLOR_NAMES)
    return sorted({_caption(name, ink, paper) for name in CLASS_NAMES for ink in colors for paper in colors})


def _render_character(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    left, top, right, bottom = (round(edge) for edge in font.getbbox(character))
    if right <= left or bottom <= top:
        return None
    drawing = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(drawing).text((-left, -top), character, fill=255, font=font)
    if (box := drawing.getbbox()) is None:
        return None
    drawing = drawing.crop(box)
    scale = GLYPH_EXTENT / max(drawing.size)
    width, height = (max(1, round(side * scale)) for side in drawing.size)
    mask = Image.new("L", (MASK_SIZE, MASK_SIZE))
    mask.paste(
        drawing.resize((width, height), Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BICUBIC),
        ((MASK_SIZE - width) // 2, (MASK_SIZE - height) // 2),
    )
    return mask


def _uniform(n: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    return torch.rand(n, generator=rng) * (high - low) + low


def _warp(masks: Tensor, rng: torch.Generator) -> Tensor:
    """Rotate, shear, scale and shift masks [n, 1, 64, 64] in [0, 1], then halve them to the image size."""
    n = len(masks)
    angle = _uniform(n, -MAX_ROTATION, MAX_ROTATION, rng)
    shear = _uniform(n, -MAX_SHEAR, MAX_SHEAR, rng)
    height = _uniform(n, *SCALE_RANGE, rng)
    width = height * _uniform(n, *WIDTH_RANGE, rng)
    shift_x, shift_y = (_uniform(n, -MAX_SHIFT, MAX_SHIFT, rng) for _ in range(2))
    cos, sin = angle.cos(), angle.sin()
    rows = [cos / width, (shear * cos - sin) / width, shift_x, sin / height, (cos + shear * sin) / height, shift_y]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(n, 2, 3), list(masks.shape), align_corners=False)
    warped = F.grid_sample(masks, grid, align_corners=False)
    return F.avg_pool2d(warped, MASK_SIZE // IMAGE_SIZE)


def _sample_colors(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Palette indices [n] of ink and paper, which differ enough in luminance."""
    luminance = torch.tensor(list(PALETTE.values())) @ torch.tensor([0.299, 0.587, 0.114])
    pairs = ((luminance[:, None] - luminance[None, :]).abs() >= MIN_CONTRAST).nonzero()
    pairs = pairs[torch.randint(len(pairs), (n,), generator=rng)]
    black, white = COLOR_NAMES.index("black"), COLOR_NAMES.index("white")
    share = torch.rand(n, generator=rng)
    pairs[share < WHITE_ON_BLACK_SHARE + BLACK_ON_WHITE_SHARE] = torch.tensor([black, white])
    pairs[share < WHITE_ON_BLACK_SHARE] = torch.tensor([white, black])
    return pairs[:, 0], pairs[:, 1]


def _jittered(color_index: Tensor, rng: torch.Generator) -> Tensor:
    """Colours [n, 3] in [0, 1] near their palette entries; gray levels keep equal channels."""
    colors = torch.tensor(list(PALETTE.values()))[color_index]
    jitter = (torch.rand(colors.shape, generator=rng) * 2 - 1) * COLOR_JITTER
    is_gray = (colors == colors[:, :1]).all(dim=1, keepdim=True)
    return (colors + torch.where(is_gray, jitter[:, :1], jitter)).clamp(0, 1)


def _caption(class_name: str, ink: str, paper: str) -> str:
    subject = f"{ink} {class_name}".strip()
    return TEMPLATE.format(f"{subject} on {paper}" if paper else subject)
