"""The diet of the backbone for own pictures: glyphs and drawings, painted and captioned."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from datadream.models.tiny.drawings import Drawings
from datadream.models.tiny.glyphs import CLASS_NAMES
from datadream.models.tiny.painting import (
    COLOR_NAMES,
    Batch,
    bend,
    caption,
    captions,
    colors,
    ink_and_paper,
    restroke,
    through_grid,
    warp,
)

COLORED_SHARE = 0.2
# Of coloured drawings: whose colours are exchanged, who lie on white, and whose caption names the paper.
RECOLORED_SHARE = 0.5
ON_WHITE_SHARE = 0.7
NAMED_PAPER_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What pictures are painted from: masks of glyphs [faces, 36, 64, 64] uint8, and drawings."""

    glyphs: Tensor
    drawings: Drawings

    def sample(
        self, n: int, rng: torch.Generator, *, glyph_share: float, grid_share: float = 0.0, often: bool = False
    ) -> Batch:
        """n augmented, coloured and captioned pictures in random order.

        Each drawing is as likely as the other, or with `often` by how many drawings have its name.
        """
        kind = torch.rand(n, generator=rng)
        n_glyphs = int((kind < glyph_share).sum())
        n_colored = int(((kind >= glyph_share) & (kind < glyph_share + COLORED_SHARE)).sum())
        masks, pictures = self._weights(often)
        # Either may be missing from a small batch.
        parts = [self._plain(n_glyphs, n - n_glyphs - n_colored, masks, rng)] if n > n_colored else []
        parts += [self._colored(n_colored, pictures, rng)] if n_colored else []
        images = through_grid(torch.cat([part.images for part in parts]), grid_share, rng)
        order = torch.randperm(n, generator=rng)
        subjects = [subject for part in parts for subject in part.subjects]
        told = [text for part in parts for text in part.captions]
        return Batch(
            images=images[order].mul(2).sub(1),
            subjects=[subjects[place] for place in order.tolist()],
            captions=[told[place] for place in order.tolist()],
        )

    def corpus(self) -> list[str]:
        """A plain caption for each drawing: what a tokenizer learns beside the glyphs' captions."""
        return [caption(name) for name in [*self.drawings.mask_names, *self.drawings.picture_names]]

    def _weights(self, often: bool) -> tuple[Tensor, Tensor]:
        named = Counter([*self.drawings.mask_names, *self.drawings.picture_names])
        masks, pictures = (
            torch.tensor([float(named[name]) if often else 1.0 for name in names])
            for names in (self.drawings.mask_names, self.drawings.picture_names)
        )
        return masks, pictures

    def _plain(self, n_glyphs: int, n_drawings: int, weights: Tensor, rng: torch.Generator) -> Batch:
        """Masks in an ink on a paper; images in [0, 1]."""
        faces = torch.randint(len(self.glyphs), (n_glyphs,), generator=rng)
        labels = torch.randint(len(CLASS_NAMES), (n_glyphs,), generator=rng)
        rows = _drawn(weights, n_drawings, rng)
        masks = torch.cat([self.glyphs[faces, labels], self.drawings.masks[rows]]).float().div(255).unsqueeze(1)
        ink_share = warp(restroke(bend(masks, rng), rng), rng)
        ink, paper = ink_and_paper(len(masks), rng)
        ink_color, paper_color = (colors(color, rng) for color in (ink, paper))
        subjects = [CLASS_NAMES[label] for label in labels.tolist()]
        subjects += [self.drawings.mask_names[row] for row in rows.tolist()]
        images = torch.lerp(paper_color, ink_color, ink_share)
        return Batch(images=images, subjects=subjects, captions=captions(subjects, ink, paper, rng))

    def _colored(self, n: int, weights: Tensor, rng: torch.Generator) -> Batch:
        """Coloured drawings on a paper; images in [0, 1]."""
        rows = _drawn(weights, n, rng)
        drawn = self.drawings.pictures[rows].float().div(255)
        is_recolored = torch.rand(n, generator=rng) < RECOLORED_SHARE
        exchanged = torch.argsort(torch.rand(n, 3, generator=rng), dim=1)
        channels = torch.where(is_recolored[:, None], exchanged, torch.arange(3).expand(n, 3))
        inks = torch.gather(drawn[:, :3], 1, channels[:, :, None, None].expand_as(drawn[:, :3]))
        drawn = warp(torch.cat([inks, drawn[:, 3:]], dim=1), rng)
        paper = torch.randint(len(COLOR_NAMES), (n,), generator=rng)
        paper[torch.rand(n, generator=rng) < ON_WHITE_SHARE] = COLOR_NAMES.index("white")
        images = (drawn[:, :3] + colors(paper, rng) * (1 - drawn[:, 3:])).clamp(0, 1)
        is_named = torch.rand(n, generator=rng) < NAMED_PAPER_SHARE
        subjects = [self.drawings.picture_names[row] for row in rows.tolist()]
        told = [
            caption(subject, "", COLOR_NAMES[p] if named else "")
            for subject, p, named in zip(subjects, paper.tolist(), is_named.tolist(), strict=True)
        ]
        return Batch(images=images, subjects=subjects, captions=told)


def _drawn(weights: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """n places of weights [m], by weight; torch.multinomial refuses to draw none."""
    until = weights.double().cumsum(dim=0)
    return torch.searchsorted(until, torch.rand(n, generator=rng, dtype=torch.float64) * until[-1], right=True)
