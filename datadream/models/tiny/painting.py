"""Paint masks and drawings of 64x64 pixels as captioned 32x32 RGB images: geometry, colours, coarse grids.

All are batched tensor operations, which keeps a batch far cheaper than a training step. Every random choice comes from
the generator passed in.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGE_SIZE = 32
MASK_SIZE = 64
# Longest side of what is drawn, unaugmented, inside its mask, in pixels.
EXTENT = 48
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
# Smallest luminance gap between ink and paper, so that everything can be read.
MIN_CONTRAST = 0.3
WHITE_ON_BLACK_SHARE = 0.35
BLACK_ON_WHITE_SHARE = 0.1
GRID_SIZES = range(8, 17)
MAX_ROTATION = math.radians(12)
MAX_SHEAR = 0.15
SCALE_RANGE = (0.75, 1.25)
WIDTH_RANGE = (0.8, 1.15)
# As shares of the image's half side.
MAX_SHIFT = 0.1
MAX_BEND = 0.12
# Points each way that a mask is bent at.
BENDS = 4
BENT_SHARE = 0.5
# Of masks, those whose strokes get a pixel wider or narrower; and of these, those that get wider.
RESTROKED_SHARE = 0.3
WIDER_SHARE = 0.6
# Thin strokes that would vanish stay as they are.
MIN_INK_LEFT = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Painted images: `images` [n, 3, 32, 32] in [-1, 1], what each shows in n `subjects`, and n `captions`."""

    images: Tensor
    subjects: list[str]
    captions: list[str]


def caption(subject: str, ink: str = "", paper: str = "") -> str:
    named = f"{ink} {subject}".strip()
    return TEMPLATE.format(f"{named} on {paper}" if paper else named)


def captions(subjects: list[str], ink: Tensor, paper: Tensor, rng: torch.Generator) -> list[str]:
    """60 % of them are plain, 20 % name the ink alone, 10 % ink and paper, 10 % the paper alone."""
    kinds = torch.rand(len(subjects), generator=rng).tolist()
    return [
        caption(subject, COLOR_NAMES[i] if kind < 0.3 else "", COLOR_NAMES[p] if 0.2 <= kind < 0.4 else "")
        for subject, i, p, kind in zip(subjects, ink.tolist(), paper.tolist(), kinds, strict=True)
    ]


def warp(drawings: Tensor, rng: torch.Generator) -> Tensor:
    """Rotate, shear, scale and shift drawings [n, channels, 64, 64], then halve them to the image size."""
    n = len(drawings)
    angle = _uniform(n, -MAX_ROTATION, MAX_ROTATION, rng)
    shear = _uniform(n, -MAX_SHEAR, MAX_SHEAR, rng)
    height = _uniform(n, *SCALE_RANGE, rng)
    width = height * _uniform(n, *WIDTH_RANGE, rng)
    shift_x, shift_y = (_uniform(n, -MAX_SHIFT, MAX_SHIFT, rng) for _ in range(2))
    cos, sin = angle.cos(), angle.sin()
    rows = [cos / width, (shear * cos - sin) / width, shift_x, sin / height, (cos + shear * sin) / height, shift_y]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(n, 2, 3), list(drawings.shape), align_corners=False)
    warped = F.grid_sample(drawings, grid, align_corners=False)
    return F.avg_pool2d(warped, MASK_SIZE // IMAGE_SIZE)


def bend(masks: Tensor, rng: torch.Generator) -> Tensor:
    """Bend BENT_SHARE of masks [n, 1, 64, 64] smoothly, as a hand would."""
    n = len(masks)
    strength = torch.rand(n, 1, 1, 1, generator=rng) * MAX_BEND
    strength *= torch.rand(n, 1, 1, 1, generator=rng) < BENT_SHARE
    coarse = torch.randn(n, 2, BENDS, BENDS, generator=rng)
    shift = F.interpolate(coarse, size=MASK_SIZE, mode="bicubic", align_corners=True) * strength
    straight = F.affine_grid(torch.eye(2, 3).expand(n, 2, 3), list(masks.shape), align_corners=False)
    return F.grid_sample(masks, straight + shift.permute(0, 2, 3, 1), align_corners=False)


def restroke(masks: Tensor, rng: torch.Generator) -> Tensor:
    """Widen or narrow the strokes of RESTROKED_SHARE of masks [n, 1, 64, 64]."""
    is_chosen = torch.rand(len(masks), generator=rng) < RESTROKED_SHARE
    chosen = masks[is_chosen]
    is_wider = torch.rand(len(chosen), 1, 1, 1, generator=rng) < WIDER_SHARE
    changed = torch.where(is_wider, F.max_pool2d(chosen, 3, 1, 1), -F.max_pool2d(-chosen, 3, 1, 1))
    is_readable = changed.mean(dim=(1, 2, 3)) > MIN_INK_LEFT * chosen.mean(dim=(1, 2, 3))
    made = masks.clone()
    made[is_chosen] = torch.where(is_readable[:, None, None, None], changed, chosen)
    return made


def ink_and_paper(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Palette indices [n] of ink and paper, which differ enough in luminance."""
    luminance = torch.tensor(list(PALETTE.values())) @ torch.tensor([0.299, 0.587, 0.114])
    pairs = ((luminance[:, None] - luminance[None, :]).abs() >= MIN_CONTRAST).nonzero()
    pairs = pairs[torch.randint(len(pairs), (n,), generator=rng)]
    black, white = COLOR_NAMES.index("black"), COLOR_NAMES.index("white")
    share = torch.rand(n, generator=rng)
    pairs[share < WHITE_ON_BLACK_SHARE + BLACK_ON_WHITE_SHARE] = torch.tensor([black, white])
    pairs[share < WHITE_ON_BLACK_SHARE] = torch.tensor([white, black])
    return pairs[:, 0], pairs[:, 1]


def colors(color_index: Tensor, rng: torch.Generator) -> Tensor:
    """Colours [n, 3, 1, 1] in [0, 1] near their palette entries; gray levels keep equal channels."""
    exact = torch.tensor(list(PALETTE.values()))[color_index]
    jitter = (torch.rand(exact.shape, generator=rng) * 2 - 1) * COLOR_JITTER
    is_gray = (exact == exact[:, :1]).all(dim=1, keepdim=True)
    return (exact + torch.where(is_gray, jitter[:, :1], jitter)).clamp(0, 1)[..., None, None]


def through_grid(images: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """Take a share of images [n, 3, 32, 32] through a coarse grid, as small scans and thumbnails have; in place."""
    is_coarse = torch.rand(len(images), generator=rng) < share
    sizes = torch.randint(GRID_SIZES.start, GRID_SIZES.stop, (len(images),), generator=rng)
    for size in GRID_SIZES:
        chosen = is_coarse & (sizes == size)
        coarse = F.interpolate(images[chosen], size=size, mode="area")
        images[chosen] = F.interpolate(coarse, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
    return images


def _uniform(n: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    return torch.rand(n, generator=rng) * (high - low) + low
