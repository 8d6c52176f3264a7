"""What a method is: a pure function from a few-shot set to the adapters to train and the images to draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from datadream.config import ExperimentConfig, nearest
from datadream.data.few_shot import FewShotSet
from datadream.seeds import derive_seed


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
    """One image to draw."""

    label: int
    index: int
    """Position among the images of its class."""
    prompt: str
    seed: int
    """Seed of this image's own noise: an image does not depend on its batch."""
    adapters: tuple[tuple[str, float], ...] = ()
    """LoRAs to merge, each with its weight; none: the base generator."""
    source_key: str | None = None
    """Photo to start from, noised by `strength`; None: start from noise."""
    strength: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the engines need to know of a method."""

    adapters: tuple[AdapterSpec, ...] = ()
    images: tuple[ImageRequest, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError when an image asks for an adapter that the plan does not train."""
        known = {spec.adapter_id for spec in self.adapters}
        for request in self.images:
            for name, _ in request.adapters:
                if name not in known:
                    raise ValueError(
                        f"image {request.index} of class {request.label} asks for adapter {name!r}, which the plan "
                        f"does not train. {nearest(name, sorted(known))}".strip()
                    )


Method = Callable[[FewShotSet, ExperimentConfig], Plan]


def class_photos(few_shot: FewShotSet, label: int) -> tuple[TrainingPhoto, ...]:
    """A class's shots with its prompt."""
    return tuple(TrainingPhoto(key, few_shot.prompts[label]) for key in few_shot.shots[label])


def requests(
    few_shot: FewShotSet, config: ExperimentConfig, adapter_of: Callable[[int], str] | None = None
) -> tuple[ImageRequest, ...]:
    """Requests from noise for every class, each with its own seed; from the base generator unless `adapter_of` names a
    class's adapter.

    `images_per_class` of them, or where filters choose, all that may be drawn: those are the first of these.
    """
    return tuple(
        ImageRequest(
            label,
            index,
            prompt,
            derive_seed(config.seed, "image", label, index),
            () if adapter_of is None else ((adapter_of(label), 1.0),),
        )
        for label, prompt in enumerate(few_shot.prompts)
        for index in range(config.generate.candidates_per_class)
    )
