"""One run, or a table of runs: all groups of knobs together."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from datadream.config.adapt import AdaptConfig, DiffusionConfig
from datadream.config.classify import ClassifyConfig
from datadream.config.cluster import ClusterConfig, TrackingConfig
from datadream.config.data import DataConfig
from datadream.config.generate import PRESET_KNOBS, GenerateConfig
from datadream.config.section import Section, flatten, knobs, nearest, parse, replace_dotted

MethodName = Literal[
    "none", "zero-shot", "language", "is-synth", "disef", "loft", "datadream-dset", "datadream-mix", "datadream-cls"
]
"""The methods of this package."""


def _method(value: str) -> str:
    """Its form alone: whether a function of the user's is there is seen where it is loaded."""
    if value not in get_args(MethodName) and not re.fullmatch(r"([\w.]+|.+\.py):[^\W\d]\w*", value):
        raise ValueError(
            "expected a method's name, or your own function as package.module:function or path/to/file.py:function. "
            + nearest(value, list(get_args(MethodName)))
        )
    return value


AnyMethod = Annotated[str, AfterValidator(_method)]


class GridConfig(Section):
    """A table of runs: every combination of what is listed, each a complete run in its own folder."""

    methods: tuple[AnyMethod, ...] = ()
    """Methods; empty: the run's own method. All have the same knobs, also is-synth, which recipe paper samples
    otherwise where it is the run's method."""
    seeds: tuple[int, ...] = ()
    """Seeds of shots, generator and classifier together; empty: the run's own seed."""
    n_shots: tuple[int, ...] = ()
    """Shots per class; empty: the run's own."""
    images_per_class: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Generated images per class to train on; empty: the run's own. The largest number is generated once, and a
    smaller one takes the first images of each class."""

    @property
    def on(self) -> bool:
        """Whether there is a table."""
        return bool(self.methods or self.seeds or self.n_shots or self.images_per_class)


class ExperimentConfig(Section):
    """One run, or with `grid` a table of runs."""

    method: AnyMethod = "datadream-cls"
    """Adapters to train and images to generate: datadream-cls (an adapter per class), datadream-dset (one for all),
    datadream-mix (per class, for every other image), loft (one per photo), is-synth or disef (from noised photos),
    language (from descriptions), zero-shot (no adapter), none (no images), or your own package.module:function or
    file.py:function."""
    images_from: str | None = None
    """A finished run whose images and shots the classifiers train on, by folder or URL (on the command line: --from);
    all knobs but those of classify, cluster and tracking are then that run's. Unset: the run generates its own."""
    extends: str | None = None
    """A run whose classes this one has and more, or more images of them, by folder or URL (on the command line:
    --extend): its photos stay those of its classes, its adapters and images are taken where they would become the
    same, and classes that data.source has gained come behind. All knobs but generate.images_per_class and those of
    classify, cluster and tracking are that run's."""
    seed: int = Field(0, ge=0)
    """Seed of everything random: shots, adapters, images, classifier."""
    data: DataConfig = DataConfig()
    """The photos."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """The image generator."""
    adapt: AdaptConfig = AdaptConfig()
    """LoRA training of the generator."""
    generate: GenerateConfig = GenerateConfig()
    """Generating and publishing images."""
    classify: ClassifyConfig = ClassifyConfig()
    """The classifier."""
    cluster: ClusterConfig = ClusterConfig()
    """Where the work is done."""
    tracking: TrackingConfig = TrackingConfig()
    """Where else to look at it."""
    grid: GridConfig = GridConfig()
    """A table of runs."""

    def updated(self, changes: dict[str, Any]) -> ExperimentConfig:
        """Return a copy with dotted knobs replaced: ``config.updated({"data.n_shots": 4})``.

        Raises ValueError naming the knob, what it expects and, for an unknown one, the nearest that exists.
        """
        known = list(knobs(ExperimentConfig))
        values, changes = self.model_dump(), flatten(changes, known=known)
        # A preset takes the place of what was set before; knobs that come beside it, in `changes`, win.
        if changes.get("generate.preset") is not None:
            for name in PRESET_KNOBS:
                del values["generate"][name]
        # Likewise what bounds the classifier's training: epochs of a recipe give way to steps, and steps to epochs.
        for given, other in (("epochs", "steps"), ("steps", "epochs")):
            if changes.get(f"classify.{given}") is not None and changes.get(f"classify.{other}") is None:
                values["classify"][other] = None
        for key, value in changes.items():
            replace_dotted(values, key, value, known)
        return parse_config(values)


def parse_config(values: dict[str, Any]) -> ExperimentConfig:
    """Validate a nested dict of knobs; raises ValueError with one line for the first thing that is wrong."""
    return parse(ExperimentConfig, values)
