"""Methods by name. A new one is a new file here, one line below and its name in config.MethodName; or a function of
the user's own, which needs neither (see `own`)."""

from collections import defaultdict

from datadream.config import ExperimentConfig, public_method
from datadream.data.few_shot import FewShotSet
from datadream.methods import datadream, disef, is_synth, language, loft, zero_shot
from datadream.methods.base import AdapterSpec, ImageRequest, ImageSeries, Method, Plan, TrainingPhoto
from datadream.methods.own import load_method

METHODS: dict[str, Method] = {
    "datadream-cls": datadream.plan_per_class,
    "datadream-dset": datadream.plan_per_dataset,
    "datadream-mix": datadream.plan_mix,
    "loft": loft.plan,
    "is-synth": is_synth.plan,
    "disef": disef.plan,
    "language": language.plan,
    "zero-shot": zero_shot.plan,
    # For the settings that need no images, such as a table's baselines.
    "none": lambda few_shot, config: Plan(),
}

__all__ = ["METHODS", "AdapterSpec", "ImageRequest", "ImageSeries", "Method", "Plan", "TrainingPhoto", "make_plan"]


def make_plan(few_shot: FewShotSet, config: ExperimentConfig) -> Plan:
    """What the config's method asks for; raises ValueError where a method of the user's makes no plan for these
    classes."""
    if config.method in METHODS:
        return METHODS[config.method](few_shot, config)
    made, name = load_method(config.method)(few_shot, config), public_method(config.method)
    if not isinstance(made, Plan):
        raise ValueError(f"method {name!r} returned {type(made).__name__}: expected a datadream.methods.Plan.")
    n_classes, most = len(few_shot.class_names), config.generate.candidates_per_class
    indices: dict[int, set[int]] = defaultdict(set)
    for series in made.images:
        if not 0 <= series.label < n_classes:
            raise ValueError(
                f"method {name!r} asks for images of class {series.label}: expected 0 to {n_classes - 1}."
            )
        indices[series.label].update(series.first_index + number * series.stride for number in range(series.n_images))
    # Runs take the first images of each class, and a curve over their number takes fewer of the same.
    for label, found in indices.items():
        if len(found) > most or found != set(range(len(found))):
            raise ValueError(
                f"method {name!r} plans the images {min(found)} to {max(found)} of class "
                f"{few_shot.class_names[label]!r}, {len(found)} of them: expected 0 to at most {most - 1}, without "
                "gaps (generate.images_per_class, or with generate.select its candidates)."
            )
    return made
