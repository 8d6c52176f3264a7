"""Rejection sampling of a run's images: how many candidates to propose, which of them to accept, and the record of it.

Candidates are proposed in a few attempts, until every class has the images that filters and selection ask for. What an
attempt proposes follows from the decisions on those before, and these from the plan: a start that was killed goes
through the same attempts again, for which it generates and encodes what is missing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from datadream.generate.select.features import PROMPTS, read_features, shots_name
from datadream.generate.select.filters import COPY, LABEL, ClassSelection, next_candidates, select
from datadream.methods.chunks import Chunk, first_chunks, n_images
from datadream.run.cell import Cell
from datadream.run.layout import CANDIDATES, SELECTION, ClassSelectionRecord
from datadream.runtime.failures import retried
from datadream.runtime.progress import Facts

log = logging.getLogger(__name__)

SHOWN = 10
"""Classes with too few images that the warning names; the file has all."""


class RejectionSampling:
    """How far the sampling of one run's images is: `propose`, have the candidates generated and encoded, `decide`, and
    so on until nothing more is proposed; then `commit`."""

    def __init__(self, run: Cell) -> None:
        self.run = run
        self.proposed: list[Chunk] = []
        """All that was proposed so far."""
        self.selections: dict[int, ClassSelection] = {}
        self._attempt = -1
        self._n_candidates = [0] * len(run.few_shot.class_names)
        self._by_class: list[list[Chunk]] = [[] for _ in run.few_shot.class_names]
        """All chunks that there may be, in the order in which they are considered."""
        for chunk in run.chunks:
            self._by_class[chunk.label].append(chunk)
        # A method of the user's own may plan fewer than the filters would have, and none of some classes.
        self._planned = [n_images(chunks) for chunks in self._by_class]

    def propose(self) -> bool:
        """Ask for more candidates of the classes that need them; False when none does."""
        settings = self.run.config.generate
        wanted = [settings.accepted_per_class] * len(self._n_candidates)
        for label, selection in self.selections.items():
            wanted[label] = next_candidates(selection, self._n_candidates[label], self._attempt, settings)
        wanted = [min(count, planned) for count, planned in zip(wanted, self._planned, strict=True)]
        if wanted == self._n_candidates:
            return False
        self._attempt += 1
        self.proposed = first_chunks(self.run.chunks, wanted)
        proposed: Counter[int] = Counter()
        for chunk in self.proposed:
            proposed[chunk.label] += len(chunk.requests)
        # What was decided on fewer candidates is to be decided anew.
        for label, before in enumerate(self._n_candidates):
            if proposed[label] != before:
                self.selections.pop(label, None)
        self._n_candidates = [proposed[label] for label in range(len(self._n_candidates))]
        # For `datadream status`, which does not decide anything and could not know.
        self.run.store.write_json(CANDIDATES, self._n_candidates)
        return True

    def decide(self) -> None:
        """Judge the classes that have new candidates.

        In threads, not by units: 1,000 candidates of one of 1,000 classes take 0.14 s of one core, most of it inside
        NumPy, which lets other threads run. The classes of ImageNet are a minute or less beside hours of generating
        them, and starting tasks would cost small runs more than the decisions do.
        """
        labels = [label for label in range(len(self._n_candidates)) if label not in self.selections]
        with ThreadPoolExecutor() as threads:
            self.selections |= zip(labels, threads.map(self._select_class, labels), strict=True)

    def _select_class(self, label: int) -> ClassSelection:
        chunks = first_chunks(self._by_class[label], self._n_candidates)
        names = (*(chunk.chunk_id for chunk in chunks), PROMPTS, shots_name(label))
        *candidates, prompts, shots = (
            retried(partial(read_features, self.run.store, name), f"reading features {name}") for name in names
        )
        found = np.concatenate(candidates) if candidates else np.empty_like(prompts[:0])
        return select(found, label, prompts, shots, self.run.config.generate)

    def commit(self) -> None:
        """Write the selection down, and name the classes that have too few images.

        Raises RuntimeError when no image is left.
        """
        classes = []
        for label, name in enumerate(self.run.few_shot.class_names):
            selection = self.selections[label]
            indices = [index for chunk in self._by_class[label] for index in chunk.requests.indices]
            entry = ClassSelectionRecord(
                label=label,
                name=name,
                wanted=min(self.run.config.generate.images_per_class, self._planned[label]),
                n_images=len(selection.chosen),
                candidates=selection.considered,
                rejected=selection.rejected,
                shot_similarity=selection.shot_similarity,
                images=[indices[position] for position in selection.chosen],
                clip_scores=selection.clip_scores,
            )
            classes.append(entry)
        if not any(entry.n_images for entry in classes):
            raise RuntimeError(
                f"none of {sum(self._n_candidates)} candidates passed the filters of generate.select. "
                "Loosen them, or look at the images in chunks/."
            )
        short = [entry for entry in classes if entry.n_images < entry.wanted]
        for entry in short[:SHOWN]:
            log.warning(
                "class %r has %d of %d images: of its %d candidates, all that there may be (generate.select."
                "max_candidates), CLIP sees another class in %d, and %d copy a shot",
                *(entry.name, entry.n_images, entry.wanted, entry.candidates),
                *(entry.rejected[LABEL], entry.rejected[COPY]),
            )
        if len(short) > SHOWN:
            log.warning("%d classes have too few images; %s names them", len(short), self.run.store.url_of(SELECTION))
        self.run.store.write_json(SELECTION, {"classes": [entry.to_json() for entry in classes]})


def acceptance(samplings: Sequence[RejectionSampling]) -> Facts:
    """How many candidates of all runs are kept, and left out for which reason."""
    selections = [selection for sampling in samplings for selection in sampling.selections.values()]
    rejected: Counter[str] = Counter()
    for selection in selections:
        rejected.update(selection.rejected)
    return {"kept": sum(len(selection.chosen) for selection in selections), **{k: n for k, n in rejected.items() if n}}
