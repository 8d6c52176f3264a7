"""Nested few-shot sets: the 1-shot set is inside the 2-shot set, and so on (paper, section 4)."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from typing import Any

import numpy as np

from datadream.data.datasets import Dataset, Fingerprint, Photo, PhotoSource
from datadream.hashing import derive_seed

log = logging.getLogger(__name__)

SAME_LOOK_BITS = 12
"""Of 256. Two photographs differed by 2 to 8 from themselves as JPEG or WebP of low quality and in a third of their
size, and by 100 from each other. Plain pictures on one ground may come nearer, so that likeness is but a warning."""
MOST_PAIRS = 5
"""Pairs of photos that look alike which a warning names."""
COMPARED_AT_ONCE = 64
"""Photos that are compared with all others in one piece: with ImageNet's 16,000 shots a piece takes 32 MiB."""


@dataclass(frozen=True, slots=True)
class FewShotSet:
    """K real photos for each class in the order of sampling, and the photos kept apart for validation and test."""

    class_names: tuple[str, ...]
    prompts: tuple[str, ...]
    shots: tuple[tuple[str, ...], ...]
    """Photo keys by class."""
    val: tuple[Photo, ...]
    test: tuple[Photo, ...]
    flippable: bool
    captions: Mapping[str, str] = field(default_factory=dict)
    """Of the shots, by key; none unless the run has them."""
    descriptions: tuple[tuple[str, ...], ...] = ()
    """Prompts by class that describe it; none unless the run has them."""

    @property
    def n_shots(self) -> int:
        return len(self.shots[0])

    @property
    def photos(self) -> tuple[Photo, ...]:
        """All shots, class by class."""
        return tuple(Photo(key, label) for label, keys in enumerate(self.shots) for key in keys)

    @property
    def all_photos(self) -> tuple[Photo, ...]:
        """Every photo that a run reads: shots, validation and test."""
        return self.photos + self.val + self.test

    def folds(self, count: int) -> tuple[FewShotSet, ...]:
        """Sets that each lack one of `count` parts of every class's shots, and hold it as validation photos.

        At most as many as there are shots; none where nothing could be left out.
        """
        count = min(count, self.n_shots)
        folds = []
        for number in range(count) if count > 1 else ():
            kept = tuple(tuple(key for i, key in enumerate(keys) if i % count != number) for keys in self.shots)
            val = tuple(Photo(key, label) for label, keys in enumerate(self.shots) for key in keys[number::count])
            folds.append(replace(self, shots=kept, val=val))
        return tuple(folds)

    def to_json(self) -> dict[str, Any]:
        """What few_shot.json holds."""
        classes = [
            {"label": label, "name": name, "prompt": prompt, "photos": list(keys)}
            for label, (name, prompt, keys) in enumerate(zip(self.class_names, self.prompts, self.shots, strict=True))
        ]
        held_out = {"val": [asdict(photo) for photo in self.val], "test": [asdict(photo) for photo in self.test]}
        for entry, texts in zip(classes, self.descriptions, strict=False):
            entry["descriptions"] = list(texts)
        captions = {"captions": dict(self.captions)} if self.captions else {}
        return {"n_shots": self.n_shots, "classes": classes, "flippable": self.flippable, **held_out, **captions}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FewShotSet:
        return cls(
            class_names=tuple(entry["name"] for entry in value["classes"]),
            prompts=tuple(entry["prompt"] for entry in value["classes"]),
            shots=tuple(tuple(entry["photos"]) for entry in value["classes"]),
            val=tuple(Photo(**photo) for photo in value["val"]),
            test=tuple(Photo(**photo) for photo in value["test"]),
            flippable=value["flippable"],
            captions=value.get("captions", {}),
            descriptions=tuple(tuple(entry["descriptions"]) for entry in value["classes"] if "descriptions" in entry),
        )


def sample_shots(dataset: Dataset, n_shots: int, seed: int, prompt: str) -> FewShotSet:
    """Sample `n_shots` photos of every class, nested in those of every larger number.

    A data set with a test part keeps its parts, and its whole pool may become shots; of its validation photos those of
    `few_val` alone are taken, where it limits them. Without one, each class is split before anything is sampled, in an
    order that no seed changes: half of it is for shots, a quarter for validation and a quarter, at least one photo,
    for test; or the other half for test where there is a validation part. So runs of other seeds and other `n_shots`
    are tested on the same photos, and a seed still has shots to choose among. More shots than half of a class take its
    validation photos, and where these are used up its test photos, with a warning.
    Raises ValueError naming a class with too few photos.
    """
    members: list[list[Photo]] = [[] for _ in dataset.class_names]
    for photo in dataset.pool:
        members[photo.label].append(photo)
    for name, photos in zip(dataset.class_names, members, strict=True):
        if len(photos) < n_shots:
            raise ValueError(
                f"class {name!r} has {len(photos)} photos: data.n_shots asks for {n_shots}. "
                "Lower data.n_shots or add photos."
            )
    val, test = _few_val(dataset, n_shots), dataset.test
    if test:
        orders = [_shuffled(photos, seed, "few-shot", label) for label, photos in enumerate(members)]
    else:
        # Seed 0 whatever the run's: the split is a property of the data set. Only the half for shots follows the seed.
        fixed = [_shuffled(photos, 0, "held-out", label) for label, photos in enumerate(members)]
        orders = [
            _shuffled(photos[: len(photos) // 2], seed, "few-shot", label) + photos[len(photos) // 2 :]
            for label, photos in enumerate(fixed)
        ]
        val, test = _held_out(dataset, fixed, n_shots)
    return FewShotSet(
        class_names=dataset.class_names,
        prompts=tuple(prompt.format(name=name) for name in dataset.class_names),
        # The first of one order, so that smaller sets are inside larger ones (paper, section 4).
        shots=tuple(tuple(photo.key for photo in order[:n_shots]) for order in orders),
        val=val,
        test=test,
        flippable=dataset.flippable,
    )


def add_classes(old: FewShotSet, dataset: Dataset, seed: int, prompt: str) -> FewShotSet:
    """The set `old` with the classes behind it that a data set has gained since, sampled as its own were.

    Labels are behind those of `old`, whatever the names, and photos of its classes stay the recorded ones: seeds come
    from labels, so that all which was made of them stays what it would become. Where none is new it is `old` itself.
    Raises ValueError where a class of `old` is gone, and as `sample_shots` does.
    """
    if gone := [name for name in old.class_names if name not in dataset.class_names]:
        raise ValueError(f"class {gone[0]!r} of the run that is extended is gone from data.source. Bring it back.")
    new = tuple(name for name in dataset.class_names if name not in old.class_names)
    if not new:
        return old
    names, n_old = old.class_names + new, len(old.class_names)
    label_of = {name: label for label, name in enumerate(names)}
    pool, val, test = (
        tuple(Photo(photo.key, label_of[dataset.class_names[photo.label]]) for photo in photos)
        for photos in (dataset.pool, dataset.val, dataset.test)
    )
    grown = sample_shots(replace(dataset, class_names=names, pool=pool, val=val, test=test), old.n_shots, seed, prompt)
    return replace(
        grown,
        prompts=old.prompts + grown.prompts[n_old:],
        shots=old.shots + grown.shots[n_old:],
        val=old.val + tuple(photo for photo in grown.val if photo.label >= n_old),
        test=old.test + tuple(photo for photo in grown.test if photo.label >= n_old),
    )


def check_photos(source: PhotoSource, few_shots: Sequence[FewShotSet], others: Iterable[Photo] = ()) -> None:
    """Read every photo of these sets, and `others`, once: all must decode, and none may be held out from its own copy.

    Raises ValueError naming the first photo that is broken, or a validation or test photo that is a copy of a shot of
    its set, so that its accuracy would flatter. Warns of those that only look like copies, and of test photos that
    are copies of validation photos or look like them, and of shots that are copies of one another.
    """
    keys = list(dict.fromkeys(photo.key for photo in chain(*(each.all_photos for each in few_shots), others)))
    # Threads: reading is waiting for storage, and Pillow decodes without the interpreter's lock.
    with ThreadPoolExecutor() as threads:
        prints = dict(zip(keys, threads.map(source.fingerprint, keys), strict=True))
    # The sets of a table share photos, and a pair is told once.
    alike: dict[tuple[str, str], dict[tuple[str, str], None]] = defaultdict(dict)
    for few_shot in few_shots:
        for part, photos in (("validation", few_shot.val), ("test", few_shot.test)):
            for key, other in _copies(photos, few_shot.photos, prints):
                raise ValueError(f"{part} photo {key!r} is a copy of the training photo {other!r}. Remove one.")
        held_out = few_shot.val + few_shot.test
        near = _look_alikes(held_out, few_shot.photos, prints)
        alike["validation or test photos look like shots", "accuracy flatters"].update(dict.fromkeys(near))
        first: dict[str, Photo] = {}
        for photo in few_shot.photos:
            same = first.setdefault(prints[photo.key].content, photo)
            if photo.label != same.label:
                alike["shots of two classes look alike", "one of their labels is wrong"][photo.key, same.key] = None
            elif photo != same:
                told = "shots look like other shots of their class", "the choice of weights flatters"
                alike[told][photo.key, same.key] = None
        near = [*_copies(few_shot.test, few_shot.val, prints), *_look_alikes(few_shot.test, few_shot.val, prints)]
        alike["test photos look like validation photos", "the choice of weights flatters"].update(dict.fromkeys(near))
    for (what, effect), pairs in alike.items():
        if pairs:
            shown = ", ".join(f"{key!r} like {other!r}" for key, other in islice(pairs, MOST_PAIRS))
            log.warning(
                "%d %s, such as %s: if these are copies, %s. Remove one of each.",
                *(len(pairs), what, shown, effect),
            )


def _copies(
    photos: Sequence[Photo], others: Sequence[Photo], prints: Mapping[str, Fingerprint]
) -> list[tuple[str, str]]:
    """Photos whose file is that of another, with the other."""
    known = {prints[other.key].content: other.key for other in others}
    return [(photo.key, known[content]) for photo in photos if (content := prints[photo.key].content) in known]


def _look_alikes(
    photos: Sequence[Photo], others: Sequence[Photo], prints: Mapping[str, Fingerprint]
) -> list[tuple[str, str]]:
    """Photos that look like another, each with the first such one."""
    sets = []
    for part in (photos, others):
        told = {
            photo.key: look.to_bytes(32, "big")
            for photo in part
            # A blank picture looks like every other.
            if (look := prints[photo.key].look) is not None and look.bit_count() > SAME_LOOK_BITS
        }
        # uint64 [n, 4], for the popcount below: the order of bits in a word does not matter to it.
        sets.append((list(told), np.frombuffer(b"".join(told.values()), np.uint64).reshape(-1, 4)))
    (keys, looks), (other_keys, other_looks) = sets
    found = []
    for start in range(0, len(keys) if other_keys else 0, COMPARED_AT_ONCE):
        some = looks[start : start + COMPARED_AT_ONCE, None]
        near = np.bitwise_count(some ^ other_looks).sum(axis=2, dtype=np.int16) <= SAME_LOOK_BITS
        found += [(keys[start + row], other_keys[near[row].argmax()]) for row in np.flatnonzero(near.any(axis=1))]
    return found


def _shuffled(photos: Sequence[Photo], seed: int, stage: str, label: int) -> list[Photo]:
    return [photos[i] for i in np.random.default_rng(derive_seed(seed, stage, label)).permutation(len(photos))]


def _few_val(dataset: Dataset, n_shots: int) -> tuple[Photo, ...]:
    """Validation photos; where they are limited, the first of an order that no seed changes."""
    if dataset.few_val is None:
        return dataset.val
    members: list[list[Photo]] = [[] for _ in dataset.class_names]
    for photo in dataset.val:
        members[photo.label].append(photo)
    most = min(n_shots, dataset.few_val)
    return tuple(chain(*(_shuffled(photos, 0, "few-val", label)[:most] for label, photos in enumerate(members))))


def _held_out(
    dataset: Dataset, fixed: Sequence[Sequence[Photo]], n_shots: int
) -> tuple[tuple[Photo, ...], tuple[Photo, ...]]:
    """Validation and test photos of a data set without a test part; `fixed` are its classes in the order of the split:
    the pool of shots, validation, test."""
    val, test, short = list(dataset.val), list(dataset.test), []
    for name, photos in zip(dataset.class_names, fixed, strict=True):
        half = len(photos) // 2
        test_start = half if dataset.val else len(photos) - max(1, len(photos) // 4)
        # Shots beyond the half take what follows in this order: validation photos first, then test photos.
        val += photos[max(half, n_shots) : test_start]
        test += photos[max(test_start, n_shots) :]
        if n_shots > test_start:
            short.append(name)
    if short:
        log.warning(
            "%d shots take test photos of %d classes, such as %r: their accuracy does not compare with that of fewer "
            "shots. Add photos, or a test folder.",
            n_shots,
            len(short),
            short[0],
        )
    return tuple(val), tuple(test)
