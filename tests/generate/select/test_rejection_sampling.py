"""Over-generation and filters on real Ray, with photos of digits as candidates: what is published depends on the plan
alone, and whoever falls short is named."""

import io
import logging
import os
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from datadream import recipes
from datadream.data.datasets import open_source
from datadream.data.shards import from_parquet
from datadream.experiment.status import stage_status
from datadream.generate.select.features import FeatureEncoder, feature_units
from datadream.generate.select.rejection_sampling import RejectionSampling
from datadream.generate.select.stage import generate_and_select
from datadream.generate.stage import publish_dataset
from datadream.run.cell import Cell
from datadream.run.layout import CANDIDATES, DATASET, SELECTION
from datadream.run.store import RunStore
from datadream.runtime.workers import Workers
from tests.generate.candidates import commit_chunk
from tests.generate.listening import Heard

COPYING, MIXED, WRONG = 0, 5, 9
"""Classes of which a candidate copies a shot, some show another class, and all do."""


@pytest.fixture(scope="module")
def config():
    """Two shots and four images of each class, of at most eight candidates in chunks of four."""
    filters = {"label_top_k": 1, "max_shot_similarity": 0.999, "max_candidates": 2}
    return recipes.digits(
        method="zero-shot",
        data={"n_shots": 2},
        generate={"images_per_class": 4, "chunk_size": 4, "images_per_shard": 15, "select": filters},
    )


def commit_photos(run: Cell) -> None:
    """Test photos as candidates."""
    source = open_source("digits")
    photos = [[photo.key for photo in run.few_shot.test if photo.label == label] for label in range(10)]
    for chunk in run.chunks:
        label, first = chunk.requests[0].label, chunk.requests[0].index
        keys = photos[1 if label == WRONG else label][first : first + 4]
        if label == COPYING and first == 0:
            keys[1] = run.few_shot.shots[label][1]
        if label == MIXED and first == 0:
            keys[:2] = photos[0][:2]
        commit_chunk(chunk, [source.read(key) for key in keys])


def encode_first_attempt(run: Cell) -> None:
    """Without Ray, as an earlier start on this machine would have."""
    encoder = FeatureEncoder(run.config, torch.device("cpu"))
    first = [chunk for chunk in run.chunks if chunk.requests[0].index == 0]
    for unit in feature_units(run.store.url, run.few_shot, first):
        encoder.commit(unit)


def published(run: Cell, workers: Workers, *listeners) -> dict[str, bytes]:
    generate_and_select(run.store, [run], run.config, workers, listeners)
    publish_dataset(run)
    return {name: run.store.read_bytes(f"dataset/{name}") for name in run.store.read_json(DATASET)["shards"]}


@pytest.fixture(scope="module")
def undisturbed(local_ray, config, tmp_path_factory):
    run = Cell(config, RunStore(str(tmp_path_factory.mktemp("run"))))
    commit_photos(run)
    encode_first_attempt(run)
    heard, warnings = Heard(), logging.Handler()
    warnings.lines = []
    warnings.emit = lambda record: warnings.lines.append(record.getMessage())
    logging.getLogger("datadream.generate.select.rejection_sampling").addHandler(warnings)
    files = published(run, Workers(1, 1, False), heard)
    logging.getLogger("datadream.generate.select.rejection_sampling").removeHandler(warnings)
    return run, files, warnings.lines, heard


def test_what_is_left_out_is_counted_and_what_is_kept_is_published(undisturbed):
    run, files, *_ = undisturbed
    classes = run.store.read_json(SELECTION)["classes"]
    assert all(entry["candidates"] == entry["n_images"] + sum(entry["rejected"].values()) for entry in classes)
    assert classes[COPYING]["rejected"]["copy"] == 1
    assert 1 not in classes[COPYING]["images"]
    assert classes[MIXED]["rejected"]["label"] >= 2
    assert not {0, 1} & set(classes[MIXED]["images"])
    records = [record for data in files.values() for record in from_parquet(data)]
    kept = {f"{entry['label']:05d}_{index:06d}" for entry in classes for index in entry["images"]}
    assert sorted(record.key for record in records) == sorted(kept)
    sizes = [pq.read_metadata(io.BytesIO(data)).num_rows for data in files.values()]
    assert max(sizes) - min(sizes) <= 1
    proposed = {
        record.key: record for chunk in run.chunks for record in from_parquet(run.store.read_bytes(chunk.file))
    }
    for record in records:
        assert record.image == proposed[record.key].image
        assert record.provenance.pop("clip_score") > 0
        assert record.provenance == proposed[record.key].provenance


def test_a_class_that_falls_short_is_published_and_named(undisturbed):
    run, files, warnings, _ = undisturbed
    entry = run.store.read_json(SELECTION)["classes"][WRONG]
    assert entry["candidates"] == 8
    assert entry["n_images"] < 4
    assert any(f"class 'digit nine' has {entry['n_images']} of 4 images" in line for line in warnings)
    marker = run.store.read_json(DATASET)
    assert marker["selection"]["short"]["digit nine"] == entry["n_images"]
    assert marker["n_images"] == sum(pq.read_metadata(io.BytesIO(data)).num_rows for data in files.values())
    assert marker["selection"]["rejected"]["copy"] == 1
    assert marker["selection"]["worst"]["name"] == "digit nine"
    card = run.store.read_bytes("dataset/README.md").decode()
    assert "whose class is not among the first 1 of CLIP; 1 more similar to a real photo than 0.999" in card
    assert "| fewer images | " in card


def test_classes_that_are_complete_propose_no_more_and_status_tells(undisturbed):
    run, *_, heard = undisturbed
    entries = run.store.read_json(SELECTION)["classes"]
    asked = run.store.read_json(CANDIDATES)
    assert asked == [4 if entry["candidates"] == 4 and entry["n_images"] == 4 else 8 for entry in entries]
    assert set(asked) == {4, 8}
    told = {stage.stage: stage for stage in stage_status(run.store, [run])}
    assert (told["generate"].done, told["generate"].total) == (sum(asked), sum(asked))
    assert (told["select"].done, told["publish"].done) == (1, 1)
    said = [progress for progress in heard if progress.stage == "select"][-1].numbers
    rejected = Counter()
    for entry in entries:
        rejected.update(entry["rejected"])
    assert said["kept"] == sum(entry["n_images"] for entry in entries)
    assert (said["label"], said["copy"]) == (rejected["label"], rejected["copy"])


@pytest.mark.slow
def test_two_workers_and_an_interrupted_start_give_the_same_bytes(undisturbed, config, tmp_path):
    """The other start had all candidates, but lost the features of most of the first attempt's and of the shots."""
    source, expected, *_ = undisturbed
    run = Cell(config, RunStore(str(tmp_path)))
    names = [name for chunk in run.chunks for name in (chunk.file, chunk.marker)]
    names += [f"features/{name}.{suffix}" for name in source.store.markers("features") for suffix in ("npy", "json")]
    lost = [*(f"features/{label:05d}-000000" for label in range(7)), "features/shots-"]
    names = [name for name in names if not name.startswith(tuple(lost))]
    for name in names:
        run.store.write_bytes(name, source.store.read_bytes(name))
    before = {name: os.stat(run.store.path(name)).st_mtime_ns for name in names}
    told = {stage.stage: stage for stage in stage_status(run.store, [run])}
    assert (told["generate"].done, told["generate"].total, told["select"].done) == (40, 40, 0)
    assert published(run, Workers(2, 1, False)) == expected
    assert run.store.read_bytes(SELECTION) == source.store.read_bytes(SELECTION)
    assert all(os.stat(run.store.path(name)).st_mtime_ns == time for name, time in before.items())


def test_nothing_is_published_where_nothing_passes(local_ray, config, tmp_path):
    """Hand-made features: every candidate is the prompt of the next class."""
    run = Cell(config, RunStore(str(tmp_path)))
    prompts = np.eye(10, dtype=np.float32)
    features = {"prompts": prompts} | {f"shots-{label:05d}": prompts[[label]] for label in range(10)}
    for chunk in run.chunks:
        run.store.write_json(chunk.marker, {})
        features[chunk.chunk_id] = prompts[[(chunk.requests[0].label + 1) % 10] * 4]
    for name, rows in features.items():
        buffer = io.BytesIO()
        np.save(buffer, rows)
        run.store.write_bytes(f"features/{name}.npy", buffer.getvalue())
        run.store.write_json(f"features/{name}.json", {})
    with pytest.raises(RuntimeError, match="none of 80 candidates passed the filters"):
        generate_and_select(run.store, [run], config, Workers(1, 1, False))
    assert not run.store.exists(SELECTION)


OWN = """
from datadream.methods import ImageSeries, Plan

def few(few_shot, config):
    names = list(enumerate(few_shot.class_names))[:-1]
    return Plan(images=tuple(ImageSeries(label, (name,), 3, config.seed) for label, name in names))
"""


def test_a_plan_with_fewer_images_than_the_filters_would_have_ends(config, tmp_path):
    """Hand-made features: a method plans three images of each class but the last, and no image is its class's."""
    (tmp_path / "own.py").write_text(OWN)
    own = {"method": f"{tmp_path / 'own.py'}:few", "generate.select.max_shot_similarity": None}
    run = Cell(config.updated(own), RunStore(str(tmp_path / "run")))
    prompts = np.eye(10, dtype=np.float32)
    features = {"prompts": prompts} | {f"shots-{label:05d}": prompts[[label]] for label in range(10)}
    for chunk in run.chunks:
        label = chunk.requests[0].label
        features[chunk.chunk_id] = prompts[[label, *[label + 1] * (len(chunk.requests) - 1)]]
    for name, rows in features.items():
        buffer = io.BytesIO()
        np.save(buffer, rows)
        run.store.write_bytes(f"features/{name}.npy", buffer.getvalue())
    sampling = RejectionSampling(run)
    for _ in range(3):
        if not sampling.propose():
            break
        sampling.decide()
    else:
        pytest.fail("it goes on asking for images that are not planned")
    sampling.commit()
    entries = run.store.read_json(SELECTION)["classes"]
    assert [(entry["n_images"], entry["wanted"], entry["candidates"]) for entry in entries] == [(1, 3, 3)] * 9 + [
        (0,) * 3
    ]
