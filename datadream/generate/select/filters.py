"""Which candidates of a class are published: pure decisions on CLIP features, in the order of the candidates.

Candidates count only up to the one that completes the class, so that what was generated beyond it changes nothing.
Similarities are computed in float64: how many candidates are compared at once does not show in what is rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datadream.config import GenerateConfig

Features = NDArray[np.floating]

LABEL, COPY, REDUNDANT = "label", "copy", "redundant"
REASONS = (LABEL, COPY, REDUNDANT)
"""Why an image is left out: CLIP does not see its class in it, it copies a shot, others cover the class better."""
MOST_ATTEMPTS = 4
"""How often candidates are proposed; each attempt starts the samplers again."""
SPARE = 1.25
"""Candidates proposed for each that should be enough, at first; twice as many with each further attempt."""


@dataclass(frozen=True, slots=True)
class ClassSelection:
    """What became of a class's candidates."""

    accepted: int
    """Candidates that passed the filters, of those that count."""
    considered: int
    """Candidates that count."""
    rejected: dict[str, int]
    """Of those, how many were left out for which reason."""
    chosen: tuple[int, ...]
    """Positions of the images to publish, in ascending order."""
    clip_scores: tuple[float, ...]
    """Cosine similarity of each with its class's prompt."""
    shot_similarity: float | None
    """The highest cosine similarity of two shots, if there are two: what max_shot_similarity is to be measured by."""


def select(
    candidates: Features, label: int, prompts: Features, shots: Features, config: GenerateConfig
) -> ClassSelection:
    """Judge a class's candidates [n, D] by the prompts of all classes [C, D] and by its shots [K, D].

    All are unit features.
    """
    candidates, prompts, shots = (np.asarray(each, np.float64) for each in (candidates, prompts, shots))
    similarity = candidates @ prompts.T
    top_k, max_similarity = config.select.label_top_k, config.select.max_shot_similarity
    unlike = copies = np.zeros(len(candidates), bool)
    if top_k is not None:
        # Zero-shot CLIP has the class among its first `top_k` (DISEF: da Costa et al., 2024).
        unlike = (similarity > similarity[:, label, None]).sum(axis=1) >= top_k
    if max_similarity is not None:
        # An image is left out for one reason, the first, so that the counts add up.
        copies = ~unlike & ((candidates @ shots.T).max(axis=1) > max_similarity)
    accepted = np.flatnonzero(~unlike & ~copies)[: config.accepted_per_class]
    full = len(accepted) == config.accepted_per_class
    considered = int(accepted[-1]) + 1 if full else len(candidates)
    chosen = accepted
    if len(accepted) > config.images_per_class:
        chosen = accepted[np.sort(k_center(candidates[accepted], shots, config.images_per_class))]
    counts = (unlike[:considered].sum(), copies[:considered].sum(), len(accepted) - len(chosen))
    return ClassSelection(
        accepted=len(accepted),
        considered=considered,
        rejected={reason: int(count) for reason, count in zip(REASONS, counts, strict=True)},
        chosen=tuple(chosen.tolist()),
        clip_scores=tuple(similarity[chosen, label].round(4).tolist()),
        shot_similarity=round(float(np.triu(shots @ shots.T, 1).max()), 4) if len(shots) > 1 else None,
    )


def k_center(candidates: Features, centres: Features, count: int) -> NDArray[np.int64]:
    """`count` of the candidates [n, D], in the order in which greedy k-center takes them (Gonzalez, 1985; Sener and
    Savarese, ICLR 2018, algorithm 1): always the one farthest from its nearest centre.

    The first centres [K, D] are given. The farthest candidate is then at most twice as far from a chosen one as it
    would be in the best choice.
    """
    nearest = (candidates @ centres.T).max(axis=1)
    taken = np.zeros(count, np.int64)
    for place in range(count):
        taken[place] = nearest.argmin()
        np.maximum(nearest, candidates @ candidates[taken[place]], out=nearest)
        # Never again: where all that are left equal a centre, the smallest would be one that is taken.
        nearest[taken[: place + 1]] = np.inf
    return taken


def next_candidates(selection: ClassSelection, proposed: int, attempt: int, config: GenerateConfig) -> int:
    """How many candidates of a class to have proposed with the next attempt, by the accepted ones of `proposed`.

    `attempt` counts from 0; the last one proposes all that there may be.
    """
    limit, missing = config.candidates_per_class, config.accepted_per_class - selection.accepted
    if missing <= 0 or proposed >= limit:
        return proposed
    if attempt + 2 >= MOST_ATTEMPTS:
        return limit
    # Laplace's rule of succession: where none of ten was accepted, one of twelve may be.
    share = (selection.accepted + 1) / (proposed + 2)
    return min(limit, proposed + math.ceil(missing / share * SPARE * 2**attempt))
