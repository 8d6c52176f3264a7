"""Run folders as the stages would leave them, made of plain files."""

from __future__ import annotations

import io
import json
import math
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from datadream.data.few_shot import FewShotSet
from datadream.run.layout import (
    ADAPTER_INDEX,
    DATASET,
    FEW_SHOT,
    IMAGES,
    AdapterEntry,
    AdapterMarker,
    ClassifierMarker,
    ClosestPair,
    DatasetMarker,
    ImageDistances,
    ImagesRecord,
    SearchRecord,
    SelectionTotals,
    StageSeconds,
    adapter_marker,
    adapter_samples,
    classifier_logits,
    classifier_marker,
    shard_file,
    stage_seconds,
)
from datadream.run.store import RunStore

CLASS_NAMES = ("<b>&x", "cat", "dog")
IMAGES_PER_CLASS = 10
PIXELS = 16


def record(
    setting: str,
    top1: float | None,
    seed: int = 0,
    method: str = "none",
    shots: int = 4,
    images_per_class: int = 10,
) -> dict[str, Any]:
    """One record of metrics.json."""
    return {
        "method": method,
        "setting": setting,
        "shots": shots,
        "seed": seed,
        "top1": top1,
        "n_test": 300 if top1 is not None else 0,
        "val_top1": 80.0,
        "n_val": 120,
        "n_synthetic": 3 * images_per_class if method != "none" else 0,
        "images_per_class": images_per_class if method != "none" else 0,
        "dataset": "digits",
        "top5": None if top1 is None else 99.0,
        "macro": top1,
        "ece": None if top1 is None else 5.5,
        "intervals": intervals(top1),
        "chosen_by": None if setting == "zero-shot" else "val",
    }


def intervals(top1: float | None) -> dict[str, list[float]]:
    """Bootstrap intervals as metrics.json of a setting holds them."""
    if top1 is None:
        return {}
    return {"top1": [top1 - 2, top1 + 2], "top5": [98.0, 100.0], "macro": [top1 - 3, top1 + 3], "ece": [4.5, 7.5]}


def image_bytes(label: int, index: int, pixels: int = PIXELS) -> bytes:
    """A small PNG of one colour, which tells its label and index."""
    pixel_grid = np.full((pixels, pixels, 3), (40 + 60 * label, 20 * index, 128), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixel_grid).save(buffer, "PNG")
    return buffer.getvalue()


def write_photos(root: Path, class_names: tuple[str, ...] = CLASS_NAMES, n_shots: int = 4) -> None:
    for label, name in enumerate(class_names):
        (root / name).mkdir(parents=True)
        for index in range(n_shots):
            (root / name / f"{index}.png").write_bytes(image_bytes(label, index))


def write_few_shot(store: RunStore, class_names: tuple[str, ...], n_shots: int) -> None:
    prompts = tuple(f"a photo of {name}" for name in class_names)
    shots = tuple(tuple(f"{name}/{i}.png" for i in range(n_shots)) for name in class_names)
    store.write_json(FEW_SHOT, FewShotSet(class_names, prompts, shots, (), (), flippable=True).to_json())


def write_stage_seconds(store: RunStore, seconds: dict[str, float]) -> None:
    for stage, value in seconds.items():
        store.write_json(stage_seconds(stage), StageSeconds(seconds=value).to_json())


def write_dataset(store: RunStore, kind: str, n_classes: int) -> None:
    """Two shards whose images are mixed by class."""
    samples = [(label, image_bytes(label, i)) for i in range(IMAGES_PER_CLASS) for label in range(n_classes)]
    halves = samples[::2], samples[1::2]
    suffix, pack = {"parquet": ("parquet", _parquet), "webdataset": ("tar", _tar)}[kind]
    names = [f"data/train-{i:05d}-of-00002.{suffix}" for i in range(2)]
    for name, half in zip(names, halves, strict=True):
        store.write_bytes(shard_file(name), pack(half))
    marker = DatasetMarker(format=kind, n_images=len(samples), class_names=CLASS_NAMES[:n_classes], shards=names)
    store.write_json(DATASET, marker.to_json())


def _parquet(samples: list[tuple[int, bytes]]) -> bytes:
    rows = [{"image": {"bytes": data, "path": f"{i}.png"}, "label": label} for i, (label, data) in enumerate(samples)]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def _tar(samples: list[tuple[int, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for i, (label, data) in enumerate(samples):
            parts = {"cls": str(label).encode(), "json": json.dumps({"index": i}).encode(), "png": data}
            for suffix, content in parts.items():
                member = tarfile.TarInfo(f"{i:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_adapters(store: RunStore, n_adapters: int) -> None:
    for i in range(n_adapters):
        adapter = AdapterMarker(
            adapter_id=f"class-{i:05d}",
            spec={},
            spec_sha256="",
            weights_sha256="",
            base_model="tiny",
            rank=16,
            steps=100,
            losses=[(step, 0.2 + 0.1 * math.exp(-step / 30) + 0.001 * i) for step in range(10, 101, 10)],
            vae_encodes=4,
            seconds=3.5,
            versions={},
        )
        store.write_json(adapter_marker(adapter.adapter_id), adapter.to_json())


def write_setting(
    store: RunStore,
    setting: str,
    top1: float | None,
    class_names: tuple[str, ...],
    n_test: int = 300,
    chosen_by: str | None = "val",
    val_top1: float | None = 80.0,
) -> None:
    trained = setting != "zero-shot"
    curve = [{"step": step, "loss": math.exp(-step / 50), "val_top1": 60 + step / 5} for step in range(20, 101, 20)]
    tested: dict[str, Any] = {"per_class": []}
    if top1 is not None:
        labels = range(len(class_names))
        tested = {
            "n_test": n_test,
            "top5": 99.0,
            "macro": top1,
            "ece": 5.5,
            "intervals": intervals(top1),
            "per_class": [{"name": name, "top1": top1 - label, "n": 100} for label, name in enumerate(class_names)],
            "confusion": [[97 if row == column else 1 for column in labels] for row in labels],
        }
    marker = ClassifierMarker(
        setting=setting,
        top1=top1,
        chosen_by=chosen_by if trained else None,
        val_top1=val_top1,
        n_val=120,
        best_step=100 if trained else 0,
        curve=curve if trained else [],
        seconds=2.0,
        n_synthetic=30 if "synthetic" in setting else 0,
        n_real=12,
        **tested,
    )
    store.write_json(classifier_marker(setting), marker.to_json())


def write_logits(store: RunStore, setting: str, labels: list[int], predicted: list[int], n_classes: int) -> None:
    """Judgements of a setting's test photos, the photo in place i of class c being <class name>/<i % 4>.png; the
    later, the surer."""
    logits = np.zeros((len(labels), n_classes), np.float32)
    logits[range(len(labels)), predicted] = [1 + place for place in range(len(labels))]
    rows = pa.FixedSizeListArray.from_arrays(pa.array(logits.flatten()), n_classes)
    keys = [f"{CLASS_NAMES[label % len(CLASS_NAMES)]}/{place % 4}.png" for place, label in enumerate(labels)]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"key": keys, "label": pa.array(labels, pa.int64()), "logits": rows}), buffer)
    store.write_bytes(classifier_logits(setting), buffer.getvalue())


def write_samples(store: RunStore, adapter_id: str, steps: list[int]) -> None:
    """An adapter that made samples after these steps, and is in the index."""
    for step in steps:
        store.write_bytes(adapter_samples(adapter_id, step), image_bytes(0, 0))
    entry = AdapterEntry(
        adapter_id=adapter_id,
        file="",
        sha256="",
        prompts=["a photo of a cat"],
        n_photos=4,
        steps=steps[-1],
        last_loss=0.1,
        rank=16,
        base_model="tiny",
        seconds=3.5,
    )
    store.write_json(ADAPTER_INDEX, [entry.to_json()])


def write_search(
    store: RunStore, setting: str, rates: tuple[float, ...], best: int, unlisted: float | None = None
) -> None:
    """Add a search to a setting: a rung of all learning rates, of which the first diverged and two go on.

    An `unlisted` rate, the config's own, is behind in that rung and wins in the last.
    """
    trials = [
        {"knobs": {"learning_rate": rate}, "steps": 33, "val_top1": 70.0 + place if place else None}
        for place, rate in enumerate(rates)
    ]
    gains = {place: 10 + (place == best) for place in range(len(rates))[-2:]}
    last = [trials[place] | {"steps": 100, "val_top1": 70.0 + place + gain} for place, gain in gains.items()]
    if unlisted is not None:
        trials.append({"knobs": {"learning_rate": unlisted}, "steps": 33, "val_top1": 60.0})
        last.append(trials[-1] | {"steps": 100, "val_top1": 90.0})
    found = [*_ranked(trials), *_ranked(last)]
    search = SearchRecord(**_ranked(last)[0], n_trials=len(found), trials=found)
    name = classifier_marker(setting)
    marker = ClassifierMarker.from_json(store.read_json(name))
    store.write_json(name, replace(marker, search=search.to_json()).to_json())


def _ranked(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(trials, key=lambda trial: -(trial["val_top1"] or 0.0))


def write_selection(store: RunStore) -> None:
    """Filters left out a third of the images of the dataset that is there."""
    totals = SelectionTotals(
        candidates=1232,
        rejected={"label": 1200, "copy": 2, "redundant": 0},
        short={"cat": 10},
        worst={"name": "cat", "candidates": 30, "n_images": 10},
    )
    marker = DatasetMarker.from_json(store.read_json(DATASET))
    store.write_json(DATASET, replace(marker, selection=totals.to_json()).to_json())


def write_images(store: RunStore, fid: float, n_classes: int = 3, **changes: Any) -> None:
    """The images of the dataset that is there as `datadream images` measured them; class c has a FID of `fid` + c."""
    measures = {
        "kid": 0.125,
        "cmmd": 0.5,
        "precision": 0.75,
        "recall": 0.5,
        "density": 0.8,
        "coverage": None,
        "recognised": 0.9,
    }
    classes = [
        ImageDistances(name=name, n_images=10, n_photos=4, fid=fid + label, **measures).to_json()
        for label, name in enumerate(CLASS_NAMES[:n_classes])
    ]
    marker = DatasetMarker.from_json(store.read_json(DATASET))
    pair = ClosestPair(label=1, shard=marker.shards[0], image="2", photo="cat/1.png", similarity=0.987)
    record = ImagesRecord(
        model="local-dir:/home/somebody/clip",
        pretrained=None,
        against="held-out",
        plan=None,
        all=ImageDistances(name="", n_images=30, n_photos=12, fid=fid, **measures).to_json(),
        classes=classes,
        shot_similarity={"images": [0.8, 0.9, 0.987], "photos": [0.7, 0.85, 0.95]},
        closest=[pair.to_json()],
    )
    store.write_json(IMAGES, replace(record, **changes).to_json())
