"""Exports are what the run would have written in that format, other libraries read them, and a killed one goes on."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from datadream import recipes
from datadream.adapt.artifacts import commit_adapter, write_index
from datadream.adapt.lora_trainer import TrainedAdapter
from datadream.adapt.stage import adapter_units
from datadream.cli import main
from datadream.data.card import dataset_card
from datadream.data.shards import ImageRecord, encode_image, to_parquet, to_webdataset
from datadream.export.formats import check_export
from datadream.hashing import sha256
from datadream.models.diffusion.merge import InPlaceMerger
from datadream.models.diffusion.pipeline import load_pipeline
from datadream.run.cell import Cell
from datadream.run.config_record import record_config
from datadream.run.layout import DATASET, FEW_SHOT, DatasetMarker, shard_file
from datadream.run.store import RunStore
from tests.models.adapters import random_adapter, unet_output

datasets = pytest.importorskip("datasets")
webdataset = pytest.importorskip("webdataset")
WRITERS = {"parquet": to_parquet, "webdataset": to_webdataset}
NAMES = {
    "parquet": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
    "webdataset": ["data/000000.tar", "data/000001.tar"],
}


def images(shard: int) -> list[ImageRecord]:
    rng = np.random.default_rng(shard)
    return [
        ImageRecord(
            f"{label:05d}_{shard:06d}",
            encode_image(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), "webp"),
            label,
            {"prompt": "a “photo”", "adapters": [{"name": f"class-{label:05d}", "weight": 1.0, "sha256": "ab"}]},
        )
        for label in range(10)
    ]


def published(folder: Path, form: str) -> RunStore:
    """A run with two shards of ten images, as generation leaves it."""
    store, config = RunStore(str(folder)), recipes.digits(**{"data.n_shots": 2, "generate.dataset_format": form})
    few_shot = Cell(config, store).few_shot
    record_config(store, config)
    store.write_json(FEW_SHOT, few_shot.to_json())
    shards = {name: WRITERS[form](images(n), "webp", few_shot.class_names) for n, name in enumerate(NAMES[form])}
    for name, data in shards.items():
        store.write_bytes(shard_file(name), data)
    sizes = list(map(len, shards.values()))
    store.write_bytes("dataset/README.md", dataset_card(few_shot, config, 20, sum(sizes)).encode())
    marker = DatasetMarker(
        format=form,
        image_format="webp",
        n_images=20,
        class_names=few_shot.class_names,
        shards=list(shards),
        sha256=list(map(sha256, shards.values())),
        n_bytes=sizes,
    )
    store.write_json(DATASET, marker.to_json())
    return store


def files(store: RunStore, folder: str = "") -> dict[str, bytes]:
    names = sorted(store.files(folder))
    return {
        name.removeprefix("dataset/"): store.read_bytes(name)
        for name in names
        if name.rpartition("/")[2] != "export.json"
    }


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
@pytest.mark.parametrize("other", ["parquet", "webdataset"])
def test_a_dataset_is_what_the_run_would_have_published(form, other, tmp_path, capsys):
    published(tmp_path / "run", form)
    expected = published(tmp_path / "other", other)
    assert main(["export", str(tmp_path / "run"), "--as", other, "--to", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert files(RunStore(str(tmp_path / "out"))) == files(expected, "dataset")


def test_other_libraries_read_what_was_converted(tmp_path):
    for form, other in (("parquet", "webdataset"), ("webdataset", "parquet")):
        published(tmp_path / form, form)
        check_export(str(tmp_path / form), other, str(tmp_path / f"as-{other}"))()
    wanted = {
        record.key: (np.asarray(Image.open(io.BytesIO(record.image))), record.label)
        for n in (0, 1)
        for record in images(n)
    }

    def check(found) -> None:
        found = list(found)
        assert len(found) == 20
        for key, pixels, label in found:
            np.testing.assert_array_equal(pixels, wanted[key][0])
            assert label == wanted[key][1]

    tars = sorted(str(path) for path in (tmp_path / "as-webdataset" / "data").iterdir())
    samples = webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8")
    check((sample["__key__"], sample["webp"], sample["cls"]) for sample in samples)
    loaded = datasets.load_dataset(str(tmp_path / "as-webdataset"), split="train", cache_dir=str(tmp_path / "cache"))
    check((row["__key__"], np.asarray(row["webp"]), row["cls"]) for row in loaded)
    loaded = datasets.load_dataset(str(tmp_path / "as-parquet"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features["label"].names[7] == "digit seven"
    table = pq.read_table(tmp_path / "as-parquet" / "data").to_pylist()
    keys = [row["image"]["path"].removesuffix(".webp") for row in table]
    check(zip(keys, map(np.asarray, loaded["image"]), loaded["label"], strict=True))


def test_a_killed_export_goes_on_and_another_one_does_not_mix(tmp_path, monkeypatch):
    run, out = published(tmp_path / "run", "parquet"), tmp_path / "out"
    write_bytes = RunStore.write_bytes

    def dying(store: RunStore, name: str, data: bytes) -> None:
        if name == NAMES["webdataset"][1]:
            raise KeyboardInterrupt
        write_bytes(store, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "write_bytes", dying)
        with pytest.raises(KeyboardInterrupt):
            check_export(run.url, "webdataset", str(out))()
    first = (out / NAMES["webdataset"][0]).stat().st_mtime_ns
    assert not (out / "dataset.json").exists()
    with pytest.raises(ValueError, match="holds other files, such as 'data/000000.tar'. Name a new folder with --to."):
        check_export(run.url, "parquet", str(out))
    check_export(run.url, "webdataset", str(out))()
    assert files(RunStore(str(out))) == files(published(tmp_path / "other", "webdataset"), "dataset")
    assert (out / NAMES["webdataset"][0]).stat().st_mtime_ns == first
    assert not (out / "lock.json").exists()


def test_a_shard_that_changed_is_not_passed_on(tmp_path):
    run = published(tmp_path / "run", "parquet")
    run.write_bytes(shard_file(NAMES["parquet"][1]), b"PAR1")
    with pytest.raises(
        ValueError, match=r"shard 'data/train-00001-of-00002.parquet' of run .* is not what was published"
    ):
        check_export(run.url, "webdataset", f"memory://{tmp_path.name}/out")()


def test_adapters_as_kohyas_files_load_in_plain_diffusers(pipeline_folder, tmp_path):
    config = recipes.digits(**{"data.n_shots": 2, "diffusion.model": str(pipeline_folder)})
    store = RunStore(str(tmp_path / "run"))
    cell = Cell(config, store)
    record_config(store, config)
    weights = random_adapter(pipeline_folder, seed=1)
    for spec in cell.plan.adapters[:2]:
        commit_adapter(store, spec, TrainedAdapter(weights, [0.5], 1, 1.0, {}), config)
    write_index(adapter_units(store.url, cell.plan.adapters[:2], config.adapt))
    out = Path(check_export(store.url, "kohya", str(tmp_path / "out"))())
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(written) == ["class-00000.safetensors", "class-00001.safetensors", "export.json", "index.json"]
    assert RunStore(str(out)).read_json("index.json")[1]["prompts"] == ["a photo of a digit one"]
    plain = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    plain.load_lora_weights(out, weight_name="class-00001.safetensors")
    ours = load_pipeline(str(pipeline_folder), None, torch.device("cpu"), torch.float32)
    InPlaceMerger(ours).merge([(weights, 1.0)])
    torch.testing.assert_close(unet_output(plain), unet_output(ours), rtol=1e-4, atol=1e-5)
    # Again, for nothing: the same bytes.
    check_export(store.url, "kohya", str(out))()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == written


def test_a_strangers_run_copies_no_file_from_elsewhere_and_writes_none(tmp_path):
    run = published(tmp_path / "run", "parquet")
    (tmp_path / "key").write_text("a secret of mine")
    marker = run.read_json(DATASET)
    run.write_json(DATASET, marker | {"shards": ["../../key"] * 2, "sha256": None, "n_bytes": None})
    with pytest.raises(ValueError, match="'dataset/../../key' leads out of run"):
        check_export(run.url, "parquet", str(tmp_path / "out"))()
    assert not list(tmp_path.glob("out/data/*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--as", "kohia"], "--as is 'kohia': Did you mean 'kohya'? Known: clip, kohya, parquet, webdataset."),
        (["--as", "kohya"], "has nothing to export as kohya: adapters/index.json is missing. Run adapt."),
        (["--as", "parquet", "--setting", "real"], "--setting names a classifier: leave it out with --as parquet."),
    ],
)
def test_what_cannot_be_exported_is_said(words, message, tmp_path, capsys):
    published(tmp_path / "run", "parquet")
    assert main(["export", str(tmp_path / "run"), *words, "--to", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["export", str(tmp_path / "none"), "--as", "kohya", "--to", str(tmp_path / "out")]) == 2
    assert "no run at" in capsys.readouterr().err
