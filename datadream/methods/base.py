"""What a method is: a pure function from a few-shot set to the adapters to train and the images to generate."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
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

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):  # its letters would be prompts
            raise ValueError(f"prompts is the text {self.prompts!r}. Give a tuple of texts, such as (prompt,).")

    @property
    def indices(self) -> range:
        """Positions of its images among those of the class."""
        return range(self.first_index, self.first_index + self.n_images)

    def __len__(self) -> int:
        return self.n_images

    @overload
    def __getitem__(self, place: int) -> ImageRequest: ...

    @overload
    def __getitem__(self, place: slice) -> ImageSeries: ...

    def __getitem__(self, place: int | slice) -> ImageRequest | ImageSeries:
        """The request at a place, or the series of a slice; raises ValueError when the slice has a step."""
        if isinstance(place, slice):
            part = self.indices[place]
            if part.step != 1:
                raise ValueError(f"a slice of a series has step {part.step}: its images must be neighbours.")
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
        # Sorted, only neighbours can overlap.
        for one, other in pairwise(sorted(self.images, key=lambda series: (series.label, series.first_index))):
            if one.label == other.label and other.first_index < one.indices.stop:
                raise ValueError(
                    f"two series of class {one.label} have an image {other.first_index}. "
                    f"Begin the later one at first_index={one.indices.stop} or above."
                )


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
