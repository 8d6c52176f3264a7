"""The record of what was chosen: dataset/selection.json, from which publishing, the card and readers learn it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from datadream.methods.chunks import Chunk
from datadream.run.layout import SELECTION, ClassSelectionRecord, SelectionTotals
from datadream.run.store import RunStore


@dataclass(frozen=True, slots=True)
class Selection:
    """The images to publish, class by class, as in the file."""

    classes: Sequence[ClassSelectionRecord]

    @classmethod
    def read(cls, store: RunStore) -> Selection:
        return cls([ClassSelectionRecord.from_json(entry) for entry in store.read_json(SELECTION)["classes"]])

    def clip_scores(self, chunks: Iterable[Chunk]) -> dict[tuple[str, int], float]:
        """CLIP scores of the images to publish, by chunk file and row."""
        scores = [dict(zip(entry.images, entry.clip_scores, strict=True)) for entry in self.classes]
        return {
            (chunk.file, row): scores[chunk.label][index]
            for chunk in chunks
            for row, index in enumerate(chunk.requests.indices)
            if index in scores[chunk.label]
        }

    @property
    def totals(self) -> SelectionTotals:
        """What the card and dataset.json tell."""
        rejected: Counter[str] = Counter()
        for entry in self.classes:
            rejected.update(entry.rejected)
        worst = min(self.classes, key=lambda entry: entry.n_images / max(1, entry.candidates))
        return SelectionTotals(
            candidates=sum(entry.candidates for entry in self.classes),
            rejected=dict(rejected),
            short={entry.name: entry.n_images for entry in self.classes if entry.n_images < entry.wanted},
            worst={"name": worst.name, "candidates": worst.candidates, "n_images": worst.n_images},
        )
