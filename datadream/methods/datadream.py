"""DataDream (ECCV 2024, section 3): LoRA on the real shots, then images from noise and the class prompt; and a
mixture of them with the base generator's, which is ours."""

from __future__ import annotations

from itertools import chain

from datadream.config import ExperimentConfig
from datadream.data.few_shot import FewShotSet
from datadream.hashing import derive_seed
from datadream.methods.base import AdapterSpec, Plan, class_photos, series_per_class, taking_turns

DATASET_ADAPTER = "dataset"


def plan_per_class(few_shot: FewShotSet, config: ExperimentConfig) -> Plan:
    """DataDream_cls: one adapter for each class."""
    # By label: names of classes may hold what folders cannot.
    names = [f"class-{label:05d}" for label in range(len(few_shot.class_names))]
    # A seed of its own for each: an adapter does not depend on which others are trained, where or in which order.
    adapters = tuple(
        AdapterSpec(name, class_photos(few_shot, label), 1, derive_seed(config.seed, "adapter", label))
        for label, name in enumerate(names)
    )
    return Plan(adapters, series_per_class(few_shot, config, lambda label: names[label]))


def plan_per_dataset(few_shot: FewShotSet, config: ExperimentConfig) -> Plan:
    """DataDream_dset: one adapter for all classes."""
    n_classes = len(few_shot.class_names)
    photos = tuple(photo for label in range(n_classes) for photo in class_photos(few_shot, label))
    adapter = AdapterSpec(DATASET_ADAPTER, photos, n_classes, derive_seed(config.seed, "adapter", DATASET_ADAPTER))
    return Plan((adapter,), series_per_class(few_shot, config, lambda _: DATASET_ADAPTER))


def plan_mix(few_shot: FewShotSet, config: ExperimentConfig) -> Plan:
    """DataDream_cls, where every other image is the base generator's.

    Few photos tell an adapter how they look, and not what else the class can look like; the base generator knows that
    where it knows the class.
    """
    adapted = plan_per_class(few_shot, config)
    base = series_per_class(few_shot, config)
    mixed = (taking_turns(kinds, config) for kinds in zip(base, adapted.images, strict=True))
    return Plan(adapted.adapters, tuple(chain.from_iterable(mixed)))
