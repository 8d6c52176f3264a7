"""Methods by name. A new method is one new file here, one line below and its name in config.MethodName."""

from datadream.methods import datadream, is_synth, zero_shot
from datadream.methods.base import AdapterSpec, ImageRequest, ImageSeries, Method, Plan, TrainingPhoto

METHODS: dict[str, Method] = {
    "datadream-cls": datadream.plan_per_class,
    "datadream-dset": datadream.plan_per_dataset,
    "is-synth": is_synth.plan,
    "zero-shot": zero_shot.plan,
    # For the settings that need no images, such as a table's baselines.
    "none": lambda few_shot, config: Plan(),
}

__all__ = ["METHODS", "AdapterSpec", "ImageRequest", "ImageSeries", "Method", "Plan", "TrainingPhoto"]
