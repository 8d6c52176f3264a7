"""DataDream on Ray: few photos per class in, a better image classifier out."""

from typing import Any

from datadream.config import ExperimentConfig

__all__ = ["Experiment", "ExperimentConfig", "load_classifier", "recipes"]
# The one place that says so: nodes that got the source alone, as a job ships it, have no package metadata.
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Importing the package must stay instant: the stages import torch and Ray.
    import importlib

    if name == "recipes":
        return importlib.import_module("datadream.recipes")
    if name == "Experiment":
        return importlib.import_module("datadream.experiment.experiment").Experiment
    if name == "load_classifier":
        return importlib.import_module("datadream.classify.predictor").load_classifier
    raise AttributeError(f"module 'datadream' has no attribute {name!r}")
