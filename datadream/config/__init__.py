"""Every knob of a run: its type, its default, its unit and where the default comes from.

A config is frozen and complete: the same config gives the same result on any cluster, so all of it but `cluster`
(where and how fast the work is done) and `tracking` must agree before an existing run folder is continued.
"""

from datadream.config.adapt import AdaptConfig, DiffusionConfig
from datadream.config.classify import (
    GAUSSIAN_SETTINGS,
    GAUSSIAN_VIEWS,
    SETTINGS_WITHOUT_IMAGES,
    TRAINED_SETTINGS,
    AugmentConfig,
    ClassifyConfig,
    ImageTower,
    Setting,
)
from datadream.config.cluster import ClusterConfig, TrackerName, TrackingConfig
from datadream.config.data import WHITE, DataConfig, KnownDataset
from datadream.config.experiment import ExperimentConfig, GridConfig, MethodName, parse_config
from datadream.config.generate import PRESETS, GenerateConfig, SelectConfig
from datadream.config.locations import LOCATIONS, READ_THROUGHOUT, is_left_behind, is_same_place, located
from datadream.config.public import public_config, public_dataset, public_method, public_model, public_source
from datadream.config.search import SearchConfig
from datadream.config.section import flatten, knobs, nearest, takes_text

__all__ = [
    "GAUSSIAN_SETTINGS",
    "GAUSSIAN_VIEWS",
    "LOCATIONS",
    "PRESETS",
    "READ_THROUGHOUT",
    "SETTINGS_WITHOUT_IMAGES",
    "TRAINED_SETTINGS",
    "WHITE",
    "AdaptConfig",
    "AugmentConfig",
    "ClassifyConfig",
    "ClusterConfig",
    "DataConfig",
    "DiffusionConfig",
    "ExperimentConfig",
    "GenerateConfig",
    "GridConfig",
    "ImageTower",
    "KnownDataset",
    "MethodName",
    "SearchConfig",
    "SelectConfig",
    "Setting",
    "TrackerName",
    "TrackingConfig",
    "flatten",
    "is_left_behind",
    "is_same_place",
    "knobs",
    "located",
    "nearest",
    "parse_config",
    "public_config",
    "public_dataset",
    "public_method",
    "public_model",
    "public_source",
    "takes_text",
]
