"""Which of a run's classifiers is taken where nobody names one, and why: the run's own evidence decides whether
generated images are used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from datadream.config import Setting
from datadream.run.layout import ClassifierMarker

VOTERS = ("real", "real+synthetic")
"""Where nothing speaks for either, their mean probability is taken. Images can cost points, and the vote costs less:
over three sets with one photo per class, real+synthetic is -1.3 +- 1.1 points beside real and the vote -0.1 +- 1.2;
with four photos +0.2 +- 1.6 and +0.9 +- 1.6 (the embedded backbone that knows print; benchmarks/RESULTS.md)."""
PHOTOS_ALONE = ("real", "gda-real")
LUCK = 0.05
"""Zero-shot votes too where nothing could be left out and it recognises more of the shots than guessing would one time
in so many. Training on one photo of each class can lose more of what CLIP knew than it adds (the embedded backbone for
own pictures, letters: 66.8 % zero-shot, 54.1 % after it; benchmarks/RESULTS.md), and no fold can show it. That an
ensemble with zero-shot keeps it is WiSE-FT's finding (Wortsman et al., 2022)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Settings, several of which vote, and the reason in words for people."""

    settings: tuple[str, ...]
    reason: str


def choose_setting(found: Mapping[str, ClassifierMarker]) -> Choice:
    """Choose among settings by what their markers say: `val_top1`, `n_val`, `chosen_by` and the classes.

    Raises ValueError when there are none.
    """
    # In the order of what they train on, least first, so that the last is the one that trained on the most.
    known = [name for name in get_args(Setting) if name in found]
    if not known:
        raise ValueError("no classifier to choose among.")
    most = known[-1]
    if len(known) == 1:
        return Choice((most,), "the only one")
    # Older versions did not say what chose: None.
    by = {name: found[name].chosen_by for name in known}
    top1 = {name: found[name].val_top1 for name in known}
    # Figures compare where validation photos gave all of them. Zero-shot's choose nothing; where there are none, its
    # figure is of the shots, and others have one that is not, or none.
    by_val = all(by[name] == "val" for name in known if name != "zero-shot")
    by_unknown = set(by.values()) == {None} and None not in top1.values()
    if by_val or by_unknown:
        # `max` takes the first of equals: the one that trained on more.
        best = max(reversed(known), key=lambda name: top1[name] or 0.0)
        n = max(found[name].n_val for name in known)
        photos = f"{n:,} validation photos" if n else "the validation photos"
        return Choice((best,), f"best of {len(known)} on {photos}, {top1[best]:.1f} %")
    # The generator has seen the shots that a fold leaves out, so that folds flatter what trains on its images beside
    # the photos: where the photos alone are ahead all the same, the images are no help.
    if by.get("real") == by.get("real+synthetic") == "folds":
        real, both = float(top1["real"] or 0), float(top1["real+synthetic"] or 0)
        if real > both:
            return Choice(("real",), f"{real:.1f} % on shots left out, and {both:.1f} % with generated images")
    why = "no validation photos compare them"
    voters: tuple[str, ...] = VOTERS
    if not set(VOTERS) <= found.keys():
        voters = (next((alone for alone in PHOTOS_ALONE if alone in found), most),)
    # Without a figure of its own, real had no shots to leave out. Older versions say what chose by a figure alone.
    nothing_left_out = "real" in voters and by["real"] is None and top1["real"] is None
    if nothing_left_out and "zero-shot" in found and _knows_classes(found["zero-shot"]):
        of_shots = f"zero-shot recognises {top1['zero-shot']:.1f} % of the shots"
        return Choice((*voters, "zero-shot"), f"they vote: {why}, and {of_shots}")
    if len(voters) > 1:
        return Choice(voters, f"they vote: {why}")
    return Choice(
        voters, f"of photos alone: {why}" if voters[0] in PHOTOS_ALONE else f"trained on the most, and {why}"
    )


def _knows_classes(zero_shot: ClassifierMarker) -> bool:
    """By the shots, which zero-shot has not trained on; False where its marker has no figure of them."""
    if zero_shot.val_top1 is None or not zero_shot.per_class:
        return False
    from scipy.special import bdtrc  # takes 0.2 s to import, and few need it

    n_right = round(zero_shot.val_top1 * zero_shot.n_val / 100)
    # At least so many of the shots, each guessed with probability 1 / classes; of none, always.
    by_guessing = bdtrc(n_right - 1, zero_shot.n_val, 1 / len(zero_shot.per_class)) if n_right else 1.0
    return bool(by_guessing < LUCK)
