"""Nested few-shot draws: the 1-shot set is inside the 2-shot set, and so on (paper, section 4)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from datadream.data.datasets import Dataset, Photo, PhotoSource
from datadream.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class FewShotSet:
    """K real photos for each class in draw order, and the photos kept apart for validation and test."""

    class_names: tuple[str, ...]
    prompts: tuple[str, ...]
    shots: tuple[tuple[str, ...], ...]
    """Photo keys by class."""
    val: tuple[Photo, ...]
    test: tuple[Photo, ...]
    flippable: bool

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
        return tuple(self._fold(number, count) for number in range(count)) if count > 1 else ()

    def _fold(self, number: int, count: int) -> FewShotSet:
        kept = tuple(tuple(key for i, key in enumerate(keys) if i % count != number) for keys in self.shots)
        left_out = tuple(Photo(key, label) for label, keys in enumerate(self.shots) for key in keys[number::count])
        return replace(self, shots=kept, val=left_out)

    def to_json(self) -> dict[str, Any]:
        """What few_shot.json holds."""
        classes = [
            {"label": label, "name": name, "prompt": prompt, "photos": list(keys)}
            for label, (name, prompt, keys) in enumerate(zip(self.class_names, self.prompts, self.shots, strict=True))
        ]
        held_out = {"val": [asdict(photo) for photo in self.val], "test": [asdict(photo) for photo in self.test]}
        return {"n_shots": self.n_shots, "classes": classes, "flippable": self.flippable, **held_out}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FewShotSet:
        return cls(
            class_names=tuple(entry["name"] for entry in value["classes"]),
            prompts=tuple(entry["prompt"] for entry in value["classes"]),
            shots=tuple(tuple(entry["photos"]) for entry in value["classes"]),
            val=tuple(Photo(**photo) for photo in value["val"]),
            test=tuple(Photo(**photo) for photo in value["test"]),
            flippable=value["flippable"],
        )


def draw(dataset: Dataset, n_shots: int, seed: int, prompt: str) -> FewShotSet:
    """Draw `n_shots` photos of every class from the pool.

    Without validation or test photos in the data set, the photos that were not drawn are halved between the two.
    Raises ValueError naming a class with too few photos.
    """
    orders = _draw_orders(dataset, seed)
    for name, order in zip(dataset.class_names, orders, strict=True):
        if len(order) < n_shots:
            raise ValueError(
                f"class {name!r} has {len(order)} photos: data.n_shots asks for {n_shots}. "
                "Lower data.n_shots or add photos."
            )
    left = [photo for order in orders for photo in order[n_shots:]]
    val, test = dataset.val, dataset.test
    if not test:
        test = tuple(left[1::2]) if not val else tuple(left)
    if not val and not dataset.test:
        val = tuple(left[0::2])
    return FewShotSet(
        class_names=dataset.class_names,
        prompts=tuple(prompt.format(name=name) for name in dataset.class_names),
        shots=tuple(tuple(photo.key for photo in order[:n_shots]) for order in orders),
        val=val,
        test=test,
        flippable=dataset.flippable,
    )


def check_held_out(source: PhotoSource, few_shot: FewShotSet) -> None:
    """Raises ValueError when a validation or test photo is a copy of a shot, so that its accuracy would flatter."""
    held_out = {"validation": few_shot.val, "test": few_shot.test}
    with ThreadPoolExecutor() as threads:
        shots = dict(threads.map(lambda photo: (source.fingerprint(photo.key), photo.key), few_shot.photos))
        for part, photos in held_out.items():
            for photo, print_ in zip(
                photos, threads.map(lambda each: source.fingerprint(each.key), photos), strict=True
            ):
                if print_ in shots:
                    raise ValueError(
                        f"{part} photo {photo.key!r} is a copy of the training photo {shots[print_]!r}. Remove one."
                    )


def _draw_orders(dataset: Dataset, seed: int) -> list[list[Photo]]:
    """The pool of each class in its random draw order."""
    members: list[list[Photo]] = [[] for _ in dataset.class_names]
    for photo in dataset.pool:
        members[photo.label].append(photo)
    return [
        [photos[i] for i in np.random.default_rng(derive_seed(seed, "few-shot", label)).permutation(len(photos))]
        for label, photos in enumerate(members)
    ]
