"""What runs need before they can start, from their configs alone: weights, photos, memory, disk and hours.

No photo is read. Hours, memory and disk are those of `datadream plan`, for the published numbers of classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec

from datadream.config import ExperimentConfig, KnownDataset
from datadream.costs.constants import Cluster, is_embedded
from datadream.costs.stages import MAKE_IMAGES, NAMES, Stage, imagined, stages_of
from datadream.data.datasets import open_dataset
from datadream.data.known import KNOWN
from datadream.data.known.place import Place
from datadream.models.source import INDEX, PACKAGE_SCHEME

ASSUMED = Cluster(1, "h100")
"""Where Stable Diffusion is to be planned for and no GPU is."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A run that is to be."""

    config: ExperimentConfig
    takes_images: bool = False
    """Whether another run generates its images."""


def needs(runs: Sequence[Planned], cluster: Cluster) -> str:
    """What the runs need, in words."""
    configs = [run.config for run in runs]
    if cluster.gpu is None and not all(map(is_embedded, configs)):
        cluster = ASSUMED
    lines = {"weights": _weights(runs), "photos": _photos(configs)}
    lines |= {"work": [f"{len(runs)} run{'' if len(runs) == 1 else 's'} on {cluster}", *_work(runs, cluster)]}
    return "\n".join(
        f"{name if number == 0 else '':<9}{line}".rstrip()
        for name, own in lines.items()
        for number, line in enumerate(own)
    )


def _weights(runs: Iterable[Planned]) -> list[str]:
    """The image generators and the CLIPs, and where they are."""
    models = {
        (run.config.diffusion.model, run.config.diffusion.revision)
        for run in runs
        if run.config.method != "none" and not run.takes_images
    }
    clips = {(run.config.classify.model, run.config.classify.pretrained) for run in runs}
    # By their text, since a revision or a tag may be None, which does not compare with a text.
    return [
        *(f"{model}: {_where(model, revision)}" for model, revision in sorted(models, key=str)),
        # What open_clip downloads by the name of weights is open to everybody.
        *(
            f"{model}: weights {tag}, downloaded by open_clip" if tag else f"{model}: {_where(model, None)}"
            for model, tag in sorted(clips, key=str)
        ),
    ]


def _where(model: str, revision: str | None) -> str:
    if model.startswith(PACKAGE_SCHEME):
        return "in the package"
    model = model.removeprefix("local-dir:").removeprefix("hf-hub:")
    if os.path.isabs(model) or Path(model).is_dir():
        return "there" if Path(model).is_dir() else "not there"
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(model, INDEX, revision=revision), str):
        return "in the cache of the Hub's files"
    try:
        gated = HfApi().model_info(model, revision=revision, timeout=5).gated
    except Exception as error:  # no network, no such model, or a client of another version
        return f"on the Hub, which does not tell from here whether it is gated ({type(error).__name__})"
    return "on the Hub, for those who accept its conditions there and log in" if gated else "on the Hub, for everybody"


def _photos(configs: Iterable[ExperimentConfig]) -> list[str]:
    """Each data set with its layout, and whether it is there."""
    sources = {(config.data.dataset, config.data.source) for config in configs}
    lines = []
    for name, source in sorted(sources, key=str):
        if not name:
            lines.append(source)
            continue
        known = KNOWN[name]
        if place := place_of(name, source):
            lines.append(f"{known.title}: in {place.root}")
            continue
        beside = f", {known.needs}" if known.needs != "nothing" else ""
        layout = f"{known.folders[0]}/ with {known.photos[0]}/{beside}"
        lines.append(f"{known.title}: not in {source}. Unpack it there as {layout}; {known.url}")
    return lines


def place_of(name: KnownDataset, source: str) -> Place | None:
    """Where a data set lies in the folder `source`; None where it does not."""
    fs, root = fsspec.core.url_to_fs(source)
    return Place.find(fs, root, KNOWN[name].folders, KNOWN[name].photos)


def _work(runs: Sequence[Planned], cluster: Cluster) -> list[str]:
    """Memory, disk and hours of each stage over all runs."""
    stages: dict[str, list[Stage]] = {name: [] for name in NAMES}
    for run in runs:
        data = run.config.data
        # Of the sets of the paper the published number: they need not be there yet.
        if data.dataset is None:
            n_classes = len(open_dataset(data).class_names)
        else:
            n_classes = KNOWN[data.dataset].official_counts.classes
        for stage in stages_of(imagined(run.config, n_classes), cluster):
            if not (run.takes_images and stage.name in MAKE_IMAGES):
                stages[stage.name].append(stage)
    lines = []
    for name, own in stages.items():
        if not own:
            continue
        memory = max((stage.memory for stage in own), key=lambda text: float(text.split()[0]))
        hours, disk = sum(stage.seconds for stage in own) / 3600, sum(stage.n_bytes for stage in own) / 1e9
        lines.append(f"{name:<9}{hours:>9,.1f} hours{disk:>9,.1f} GB of disk, a worker's memory {memory}")
    every = [stage for own in stages.values() for stage in own]
    total = sum(stage.seconds for stage in every) / 3600, sum(stage.n_bytes for stage in every) / 1e9
    lines.append(f"{'all':<9}{total[0]:>9,.1f} hours{total[1]:>9,.1f} GB of disk")
    return [*lines, "as `datadream plan` models them, which says for each run how far they may be wrong"]
