"""Draw candidates in a few rounds, until every class has the images that filters and selection ask for.

What a round draws follows from the decisions on the rounds before, and these from the plan: a start that was killed
goes through the same rounds again and draws and encodes what is missing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import ray

from datadream.config import ExperimentConfig, GenerateConfig
from datadream.data.few_shot import FewShotSet
from datadream.generate.select.features import PROMPTS, encode_features, feature_jobs, read_features, shots_name
from datadream.generate.select.filters import COPY, LABEL, ClassSelection, next_candidates, select
from datadream.generate.stage import draw_chunks
from datadream.methods.chunks import Chunk, first_chunks, n_images
from datadream.run.layout import CANDIDATES, SELECTION
from datadream.run.store import RunStore
from datadream.runtime.map_units import plain_errors
from datadream.runtime.progress import Facts, Progress
from datadream.runtime.session import Workers

log = logging.getLogger(__name__)

SHOWN = 10
"""Classes with too few images that the warning names; the file has all."""


@dataclass(frozen=True)
class Candidates:
    """All that may be drawn for one run, in the order in which it is considered."""

    store: RunStore
    few_shot: FewShotSet
    config: ExperimentConfig
    chunks: Sequence[Chunk]

    @cached_property
    def by_class(self) -> list[list[Chunk]]:
        """The chunks of each class."""
        chunks: list[list[Chunk]] = [[] for _ in self.few_shot.class_names]
        for chunk in self.chunks:
            chunks[chunk.requests[0].label].append(chunk)
        return chunks


def draw_and_select(
    store: RunStore,
    runs: Sequence[Candidates],
    config: ExperimentConfig,
    workers: Workers,
) -> None:
    """Draw candidates of runs that are alike but for method, seed and shots, and commit which are to be published.

    Raises RuntimeError naming chunks that fail, or a run of which no candidate is accepted.
    """
    rounds = [_Rounds(run) for run in runs if run.chunks and not run.store.exists(SELECTION)]
    facts: Facts = {}
    while sum(each.ask() for each in rounds):  # not any(): all are to be asked
        draw_chunks(store, [chunk for each in rounds for chunk in each.asked], config, workers, facts)
        total = sum(n_images(each.asked) for each in rounds)
        with Progress("select", total, "image", store) as progress:
            jobs = [job for each in rounds for job in feature_jobs(each.run.store.url, each.run.few_shot, each.asked)]
            encode_features(jobs, config, workers, progress)
            with plain_errors("selecting"):
                for each in rounds:
                    each.decide()
            facts = _facts(rounds)
            progress.update(total, **facts)
        log.info("select: of %d candidates %s", total, ", ".join(f"{name} {n}" for name, n in facts.items()))
    for each in rounds:
        each.commit()


class _Rounds:
    """How far the drawing of one run's candidates is."""

    def __init__(self, run: Candidates) -> None:
        self.run = run
        self.asked: list[Chunk] = []
        self.selections: dict[int, ClassSelection] = {}
        self._attempt = -1
        self._drawn = [0] * len(run.by_class)

    def ask(self) -> bool:
        """Begin the next round; False when no class needs one."""
        settings = self.run.config.generate
        wanted = [settings.accepted_per_class] * len(self._drawn)
        for label, selection in self.selections.items():
            wanted[label] = next_candidates(selection, self._drawn[label], self._attempt, settings)
        if wanted == self._drawn:
            return False
        self._attempt += 1
        self.asked = first_chunks(self.run.chunks, wanted)
        drawn = Counter(request.label for chunk in self.asked for request in chunk.requests)
        for label, before in enumerate(self._drawn):
            if drawn[label] != before:
                self.selections.pop(label, None)
        self._drawn = [drawn[label] for label in range(len(self._drawn))]
        self.run.store.write_json(CANDIDATES, self._drawn)
        return True

    def decide(self) -> None:
        """Judge the classes that have new candidates."""
        store, settings = self.run.store, self.run.config.generate
        open_classes = [label for label in range(len(self._drawn)) if label not in self.selections]
        decided = [
            _select_class.remote(store.url, first_chunks(self.run.by_class[label], self._drawn), label, settings)
            for label in open_classes
        ]
        self.selections |= zip(open_classes, ray.get(decided), strict=True)

    def commit(self) -> None:
        """Write the selection down, and name the classes that have too few images."""
        classes = [self._record(label) for label in range(len(self._drawn))]
        n_candidates = sum(self._drawn)
        if not any(entry["n_images"] for entry in classes):
            raise RuntimeError(
                f"none of {n_candidates} candidates passed the filters of generate.select. "
                "Loosen them, or look at the images in chunks/."
            )
        short = [entry for entry in classes if entry["n_images"] < entry["wanted"]]
        for entry in short[:SHOWN]:
            log.warning(
                "class %r has %d of %d images: of its %d candidates, all that generate.select.max_candidates allows, "
                "CLIP sees another class in %d, and %d copy a shot",
                *(entry[key] for key in ("name", "n_images", "wanted", "candidates")),
                entry["rejected"][LABEL],
                entry["rejected"][COPY],
            )
        if len(short) > SHOWN:
            log.warning("%d classes have too few images; %s names them", len(short), self.run.store.path(SELECTION))
        self.run.store.write_json(SELECTION, {"classes": classes})

    def _record(self, label: int) -> dict[str, Any]:
        selection = self.selections[label]
        indices = [request.index for chunk in self.run.by_class[label] for request in chunk.requests]
        return {
            "label": label,
            "name": self.run.few_shot.class_names[label],
            "wanted": self.run.config.generate.images_per_class,
            "n_images": len(selection.chosen),
            "candidates": selection.considered,
            "rejected": selection.rejected,
            "shot_similarity": selection.shot_similarity,
            "images": [indices[position] for position in selection.chosen],
            "clip_scores": selection.clip_scores,
        }


@ray.remote
def _select_class(run_url: str, chunks: Sequence[Chunk], label: int, config: GenerateConfig) -> ClassSelection:
    store = RunStore(run_url)
    candidates = np.concatenate([read_features(store, chunk.chunk_id) for chunk in chunks])
    return select(candidates, label, read_features(store, PROMPTS), read_features(store, shots_name(label)), config)


def _facts(rounds: Sequence[_Rounds]) -> Facts:
    """How many candidates of all runs are kept, and left out for which reason."""
    selections = [selection for each in rounds for selection in each.selections.values()]
    rejected: Counter[str] = Counter()
    for selection in selections:
        rejected.update(selection.rejected)
    return {"kept": sum(len(selection.chosen) for selection in selections), **{k: n for k, n in rejected.items() if n}}
