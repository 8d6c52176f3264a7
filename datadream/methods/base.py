"""What a method is: a pure function from a few-shot set to the adapters to train and the images to generate."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, overload

from datadream.config import ExperimentConfig, nearest
from datadream.data.few_shot import FewShotSet
from datadream.hashing import derive_seed


@dataclass(frozen=True, slots=True)
class TrainingPhoto:
    """One photo of an adapter's training set and the prompt that describes it."""

    key: str
    prompt: str


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """One LoRA to train."""

    adapter_id: str
    photos: tuple[TrainingPhoto, ...]
    n_classes: int
    """Classes that it covers; its steps are proportional to them."""
    seed: int


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One image to generate."""

    label: int
    index: int
    """Position among the images of its class."""
    prompt: str
    seed: int
    """Seed of this image's own noise: an image does not depend on its batch."""
    adapters: tuple[tuple[str, float], ...] = ()
    """As in its series."""
    source_key: str | None = None
    """Photo to start from, noised by `strength`; None: start from noise."""
    strength: float | None = None


@dataclass(frozen=True, slots=True)
class ImageSeries(Sequence[ImageRequest]):
    """Images of one class that differ in nothing but their index, and so noise, in which of the prompts they
    have, and in the photo that they start from.

    Their indices are neighbours, or with `stride` every so many-th, so that several series may take turns.

    It is a sequence of `ImageRequest`s that makes each when it is asked for: half a million images are planned in the
    memory of their series, and a seed is derived where its image is generated. A slice is a series again.
    """

    label: int
    prompts: tuple[str, ...]
    """An image's seed chooses its prompt among these."""
    n_images: int
    run_seed: int
    first_index: int = 0
    """Index of its first image among those of the class; the series of a class share no index."""
    adapters: tuple[tuple[str, float], ...] = ()
    """LoRAs to merge, each with its weight; none: the base generator."""
    source_keys: tuple[str, ...] = ()
    """Photos to start from, noised by `strength`: image i of the class from photo i modulo their number, unless they
    are shuffled. None: start from noise."""
    strength: float | None = None
    shuffled: bool = False
    """An image's seed chooses its photo among these, as it does its prompt."""
    stride: int = 1
    """Between the indices of its images."""

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):  # its letters would be prompts
            raise ValueError(f"prompts is the text {self.prompts!r}. Give a tuple of texts, such as (prompt,).")

    @property
    def indices(self) -> range:
        """Positions of its images among those of the class."""
        return range(self.first_index, self.first_index + self.n_images * self.stride, self.stride)

    def __len__(self) -> int:
        return self.n_images

    @overload
    def __getitem__(self, place: int) -> ImageRequest: ...

    @overload
    def __getitem__(self, place: slice) -> ImageSeries: ...

    def __getitem__(self, place: int | slice) -> ImageRequest | ImageSeries:
        """The request at a place, or the series of a slice; raises ValueError when the slice has a step."""
        if isinstance(place, slice):
            if place.step not in (None, 1):
                raise ValueError(f"a slice of a series has step {place.step}: its images must be neighbours.")
            part = self.indices[place]
            return replace(self, first_index=part.start, n_images=len(part))
        return ImageRequest(*self._values(self.indices[place]))

    def values(self) -> Iterator[tuple[Any, ...]]:
        """The fields of each request in their order, as tuples: hashing these takes half of the time of objects."""
        return map(self._values, self.indices)

    def _values(self, index: int) -> tuple[Any, ...]:
        # The seed has neither adapter nor prompt in it: all methods start an image from the same noise.
        seed = derive_seed(self.run_seed, "image", self.label, index)
        # What the choice of the prompt leaves of the seed, so that neither choice tells anything of the other.
        rest, prompt = divmod(seed, len(self.prompts))
        place = rest if self.shuffled else index
        photo = self.source_keys[place % len(self.source_keys)] if self.source_keys else None
        return self.label, index, self.prompts[prompt], seed, self.adapters, photo, self.strength


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the engines need to know of a method."""

    adapters: tuple[AdapterSpec, ...] = ()
    images: tuple[ImageSeries, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError when images ask for an adapter that the plan does not train, or two have the same index,
        and for adapters' ids that are not unique or are no names of folders.

        A class's index names its image: two with the same would be one file with the same noise.
        """
        known: set[str] = set()
        for spec in self.adapters:
            if not re.fullmatch(r"\w[\w.-]*", spec.adapter_id) or spec.adapter_id in known:
                fault = "is there twice" if spec.adapter_id in known else "is no name of a folder"
                raise ValueError(f"adapter {spec.adapter_id!r} {fault}. Use letters, digits, '-', '_' and '.', once.")
            known.add(spec.adapter_id)
        for series in self.images:
            for name, _ in series.adapters:
                if name not in known:
                    where = f"image {series.first_index} of class {series.label}"
                    hint = f"which the plan does not train. {nearest(name, sorted(known))}".strip()
                    raise ValueError(f"{where} asks for adapter {name!r}, {hint}")
        in_order = sorted(self.images, key=lambda series: (series.label, series.first_index))
        for label, own in groupby(in_order, key=lambda series: series.label):
            taken: set[int] = set()
            for series in own:
                if twice := taken.intersection(series.indices):
                    raise ValueError(
                        f"two series of class {label} have an image {min(twice)}. "
                        f"Begin the later one at first_index={max(taken) + 1} or above."
                    )
                taken.update(series.indices)


# Pure: a plan is not stored, and every start and every worker's machine must find the same one again.
Method = Callable[[FewShotSet, ExperimentConfig], Plan]


def class_photos(few_shot: FewShotSet, label: int) -> tuple[TrainingPhoto, ...]:
    """A class's shots with its prompt."""
    return tuple(TrainingPhoto(key, few_shot.prompts[label]) for key in few_shot.shots[label])


def series_per_class(
    few_shot: FewShotSet, config: ExperimentConfig, adapter_of: Callable[[int], str] | None = None
) -> tuple[ImageSeries, ...]:
    """For every class its images from noise and the class prompt, or those of `generate.prompts`; from the base
    generator unless `adapter_of` names a class's adapter.

    `images_per_class` of them, or where filters choose, all that may be generated: the first of these are
    the ones that would be without filters.
    """
    n_images, seed = config.generate.candidates_per_class, config.seed
    return tuple(
        ImageSeries(
            label,
            tuple(template.format(name=name) for template in config.generate.prompts) or (few_shot.prompts[label],),
            n_images,
            seed,
            adapters=((adapter_of(label), 1.0),) if adapter_of else (),
        )
        for label, name in enumerate(few_shot.class_names)
    )


def taking_turns(kinds: Sequence[ImageSeries], config: ExperimentConfig) -> tuple[ImageSeries, ...]:
    """As many images of a class as `series_per_class` has, image i like those of kind i modulo their number; how many
    images the kinds have, and where they begin, does not matter.

    So a smaller number of images is the beginning of a larger one. Where filters choose, each `images_per_class`
    candidates are series of their own, for candidates are judged in the order of the series.
    """
    n_images, at_once, turns = config.generate.candidates_per_class, config.generate.images_per_class, len(kinds)
    blocks = [range(start, min(start + at_once, n_images)) for start in range(0, n_images, at_once)]
    return tuple(
        replace(kinds[first % turns], first_index=first, n_images=len(block[place::turns]), stride=turns)
        for block in blocks
        for place, first in enumerate(block[:turns])
    )
