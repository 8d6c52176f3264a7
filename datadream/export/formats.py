"""What a run has made in other programs' formats: its adapters as kohya's LoRA files, its images as Parquet or
WebDataset. Nothing is trained or generated.

One shard is in memory at a time, with up to four copies of its bytes. Every file is written whole or not at all, and
the last one says that all are there, so an export that was killed goes on with the files that are missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from datadream.config import ExperimentConfig, nearest
from datadream.data.card import dataset_card
from datadream.data.few_shot import FewShotSet
from datadream.data.shards import from_parquet, from_webdataset, shard_name, to_parquet, to_webdataset
from datadream.hashing import sha256
from datadream.run.cell import images_store, where_cells_are
from datadream.run.config_record import recorded_config
from datadream.run.layout import ADAPTER_INDEX, DATASET, FEW_SHOT, LOCK, AdapterEntry, DatasetMarker, shard_file
from datadream.run.lock import RunLock
from datadream.run.store import TEMPORARY, RunStore, read_adapter

log = logging.getLogger(__name__)

EXPORT = "export.json"
"""Whose export a folder holds: its kind, and the hash of the record of what is exported."""
DATASET_FORMATS = ("parquet", "webdataset")
KINDS = ("kohya", *DATASET_FORMATS)


def check_export(run: str, kind: str, folder: str) -> Callable[[], str]:
    """Find what stands in the way; returns the work, which returns the folder's URL.

    Raises ValueError or FileNotFoundError when the run does not hold what is asked for, or when other files lie in
    `folder`, a path or fsspec URL.
    """
    if kind not in KINDS:
        raise ValueError(f"--as is {kind!r}: {nearest(kind, ['clip', *KINDS])}")
    target, origin = RunStore(folder), RunStore(run)
    config = recorded_config(origin)
    if config is None:
        raise FileNotFoundError(f"no run at {origin.url!r}: it holds no config.json. Give the folder of a run.")
    origin = images_store(origin, config)
    record, stage = (ADAPTER_INDEX, "adapt") if kind == "kohya" else (DATASET, "generate")
    if not origin.exists(record):
        raise ValueError(
            f"run {origin.url!r} has nothing to export as {kind}: {record} is missing. Run {stage}."
            f"{where_cells_are(config)}"
        )
    claim = {"as": kind, "of": sha256(origin.read_bytes(record))}
    # A killed export leaves its lock and beginnings of files, and goes on.
    others = {name for name in target.files("") if name != LOCK and not name.endswith(TEMPORARY)}
    if others and (EXPORT not in others or target.read_json(EXPORT) != claim):
        raise ValueError(f"{folder!r} holds other files, such as {min(others)!r}. Name a new folder with --to.")

    def work() -> str:
        with RunLock(target):
            target.write_json(EXPORT, claim)
            if kind == "kohya":
                _export_adapters(origin, config, target)
            else:
                _export_dataset(origin, config, kind, target)
        return target.url

    return work


def _export_adapters(origin: RunStore, config: ExperimentConfig, target: RunStore) -> None:
    """<adapter id>.safetensors for each adapter, and index.json, which says what each is."""
    # Imported here, not above: diffusers takes seconds, and datasets are exported without it.
    from datadream.models.diffusion.kohya import Base, to_kohya

    base, entries = Base.read(config.diffusion.model, config.diffusion.revision), []
    for entry in map(AdapterEntry.from_json, origin.read_json(ADAPTER_INDEX)):
        data = to_kohya(read_adapter(origin, entry.adapter_id), base, entry.adapter_id)
        file = f"{entry.adapter_id}.safetensors"
        target.write_bytes(file, data)
        entries.append(replace(entry, file=file, sha256=sha256(data)))
    target.write_json("index.json", [entry.to_json() for entry in entries])
    log.info("export: %d adapters", len(entries))


def _export_dataset(origin: RunStore, config: ExperimentConfig, form: str, target: RunStore) -> None:
    """The bytes that the run would have published with `generate.dataset_format`."""
    marker = DatasetMarker.from_json(origin.read_json(DATASET))
    image_format, count = marker.image_format or config.generate.image_format, len(marker.shards)
    read = from_parquet if marker.format == "parquet" else from_webdataset
    write = to_parquet if form == "parquet" else to_webdataset
    names = [shard_name(form, number, count) for number in range(count)]
    hashes, sizes = [], []
    for number, (shard, name) in enumerate(zip(marker.shards, names, strict=True)):
        if target.exists(name):  # whole, since it has its name
            data = target.read_bytes(name)
        else:
            data = origin.read_bytes(shard_file(shard))
            if marker.sha256 is not None and sha256(data) != marker.sha256[number]:
                raise ValueError(f"shard {shard!r} of run {origin.url!r} is not what was published.")
            if form != marker.format:
                data = write(read(data), image_format, marker.class_names)
            target.write_bytes(name, data)
        hashes.append(sha256(data))
        sizes.append(len(data))
    few_shot = FewShotSet.from_json(origin.read_json(FEW_SHOT))
    told = config.updated({"generate.dataset_format": form})
    selection = dict(marker.selection) if marker.selection else None
    target.write_bytes("README.md", dataset_card(few_shot, told, marker.n_images, sum(sizes), selection).encode())
    done = replace(marker, format=form, shards=names, sha256=hashes, n_bytes=sizes)
    target.write_json("dataset.json", done.to_json())
    log.info("export: %d images in %d shards", marker.n_images, count)
