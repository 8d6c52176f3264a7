"""Adapters that others made stand for classes as they are, or are refused before any work."""

import unicodedata
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline

from datadream import recipes
from datadream.adapt.artifacts import write_index
from datadream.adapt.given import check_given, check_given_fit, find_given, take_given
from datadream.adapt.stage import AdapterUnit, adapter_units, train_adapters
from datadream.config import ExperimentConfig
from datadream.experiment.experiment import Experiment
from datadream.hashing import sha256
from datadream.models.diffusion.kohya import Base, to_kohya
from datadream.models.diffusion.merge import InPlaceMerger
from datadream.models.diffusion.pipeline import load_pipeline
from datadream.run.cell import Cell
from datadream.run.layout import ADAPTER_INDEX, ADAPTER_WEIGHTS, DATASET, adapter_weights
from datadream.run.store import RunStore, read_adapter
from datadream.runtime.workers import Workers
from tests.models.adapters import random_adapter, unet_output


@pytest.fixture(scope="module")
def weights(pipeline_folder) -> bytes:
    return random_adapter(pipeline_folder, seed=1)


@pytest.fixture(scope="module")
def kohya(pipeline_folder, weights) -> bytes:
    return to_kohya(weights, Base.read(str(pipeline_folder), None), "three")


@pytest.fixture
def config(pipeline_folder, tmp_path) -> ExperimentConfig:
    changes = {
        "diffusion.model": str(pipeline_folder),
        "data.n_shots": 2,
        "adapt.given": str(tmp_path / "loras"),
        "adapt.steps_per_class": 2,
        "adapt.batch_size": 2,
        "cluster.workers": 2,
    }
    return recipes.digits(**changes)


@pytest.fixture
def loras(tmp_path, weights, kohya) -> Path:
    """For a class by its name, a class by its folder's, and an adapter by its id."""
    folder = tmp_path / "loras"
    (folder / "digit four").mkdir(parents=True)
    (folder / "digit_three.safetensors").write_bytes(kohya)
    (folder / "digit four" / ADAPTER_WEIGHTS).write_bytes(weights)
    (folder / "digit four" / "kohya.safetensors").write_bytes(kohya)
    (folder / "class-00007.safetensors").write_bytes(weights)
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture
def cell(config, tmp_path) -> Cell:
    return Cell(config, RunStore(str(tmp_path / "run")))


def units_of(cell: Cell) -> list[AdapterUnit]:
    return adapter_units(cell.store.url, cell.plan.adapters, cell.config.adapt)


def test_files_are_found_by_class_and_by_adapter(cell, loras):
    assert find_given(cell) == {
        "class-00003": "digit_three.safetensors",
        "class-00004": f"digit four/{ADAPTER_WEIGHTS}",
        "class-00007": "class-00007.safetensors",
    }


def test_an_accent_may_be_written_in_either_way(config, photo_folder, tmp_path, weights):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    (photo_folder / "cat").rename(photo_folder / composed)
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / f"{decomposed}.safetensors").write_bytes(weights)
    config = config.updated({"data.source": str(photo_folder)})
    label = sorted(path.name for path in photo_folder.iterdir()).index(composed)
    found = find_given(Cell(config, RunStore(str(tmp_path / "run"))))
    assert found == {f"class-0000{label}": f"{decomposed}.safetensors"}


def test_taken_as_they_are_and_merged_as_plain_diffusers_fuses_them(cell, loras, pipeline_folder, kohya, tmp_path):
    units = units_of(cell)
    keys = take_given(cell, units)
    assert sorted(key[1] for key in keys) == sorted(units[label].key[1] for label in (3, 4, 7))
    assert read_adapter(cell.store, "class-00003") == kohya
    write_index([units[label] for label in (3, 4, 7)])
    first = cell.store.read_json(ADAPTER_INDEX)[0]
    assert (first["given"], first["sha256"], first["steps"], first["last_loss"], first["rank"]) == (
        "digit_three.safetensors",
        sha256(kohya),
        0,
        None,
        4,
    )
    plain = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    plain.load_lora_weights(cell.store.path("adapters/class-00003"), weight_name=ADAPTER_WEIGHTS)
    plain.fuse_lora()
    ours = load_pipeline(str(pipeline_folder), None, torch.device("cpu"), torch.float32)
    InPlaceMerger(ours).merge([(read_adapter(cell.store, "class-00003"), 1.0)])
    torch.testing.assert_close(unet_output(ours), unet_output(plain), rtol=1e-4, atol=1e-5)


def test_one_that_was_damaged_is_taken_again(cell, loras, kohya):
    take_given(cell, units_of(cell))
    cell.store.write_bytes(adapter_weights("class-00003"), b"damaged")
    take_given(cell, units_of(cell))
    assert read_adapter(cell.store, "class-00003") == kohya


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("digit threee.safetensors", "no class or adapter 'digit threee'. Did you mean 'digit three'?"),
        ("digit three/last.safetensors", "for one adapter. Leave one."),
        (
            "digit five/a.safetensors,digit five/b.safetensors",
            "'digit five/a.safetensors' and 'digit five/b.safetensors'",
        ),
    ],
)
def test_files_that_name_nothing_or_one_thing_twice_are_refused(cell, loras, file, message):
    for path in map(loras.joinpath, file.split(",")):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        find_given(cell)


def test_a_file_that_fits_another_model_is_refused_naming_the_layer(cell, loras):
    check_given_fit([cell])
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    of_sd1 = {f"{name}.lora_down.weight": torch.ones(4, 768), f"{name}.lora_up.weight": torch.ones(320, 4)}
    (loras / "digit_three.safetensors").write_bytes(safetensors.torch.save(of_sd1))
    expected = "adapt.given: 'digit_three.safetensors' is for a layer 'unet.down_blocks.0.*attn2.to_k' of 320 x 768"
    with pytest.raises(ValueError, match=f"{expected}, which has 16 x 32 in the model") as refused:
        check_given_fit([cell])
    assert "\n" not in str(refused.value)


def test_files_that_changed_after_they_were_taken_are_noticed_until_the_images_are_there(cell, loras, config, weights):
    take_given(cell, units_of(cell))
    check_given([cell])
    (loras / "digit_three.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="adapter 'class-00003' .* was made before adapt.given had this 'digit_three"):
        Experiment(config, cell.store.url).check_inputs()
    cell.store.write_json(DATASET, {})
    Experiment(config, cell.store.url).check_inputs()


def test_nothing_to_take_is_refused(config, loras, tmp_path):
    with pytest.raises(ValueError, match="adapt.given is .*loras', but the method takes no adapters"):
        Experiment(config.updated({"method": "zero-shot"}), str(tmp_path / "run")).check_inputs()
    with pytest.raises(ValueError, match="/none' holds no adapters. Expected <class>.safetensors or <class>/pytorch"):
        Experiment(config.updated({"adapt.given": str(tmp_path / "none")}), str(tmp_path / "run")).check_inputs()


def test_where_every_class_has_a_file_nothing_is_trained(cell, loras, weights):
    for label, name in enumerate(cell.few_shot.class_names):
        if label not in (3, 4, 7):
            (loras / f"{name}.safetensors").write_bytes(weights)
    units = units_of(cell)
    train_adapters(cell.store, units, cell.config, Workers(1, 1, False), given=take_given(cell, units))
    index = cell.store.read_json(ADAPTER_INDEX)
    assert [(entry["adapter_id"], entry["steps"]) for entry in index] == [(unit.name, 0) for unit in units]


@pytest.mark.soak
def test_the_other_classes_are_trained_as_without(local_ray, config, loras, kohya, tmp_path):
    few = {"adapt.adapters_per_step": 1}
    plain = Experiment(config.updated({"adapt.given": None, **few}), str(tmp_path / "plain"))
    plain.adapt()
    experiment = Experiment(config.updated(few), str(tmp_path / "run"))
    experiment.adapt()
    for label in range(10):
        data, expected = (read_adapter(each.store, f"class-{label:05d}") for each in (experiment, plain))
        assert (data == expected) == (label not in (3, 4, 7))
    assert read_adapter(experiment.store, "class-00003") == kohya
    assert [entry.get("given") is not None for entry in experiment.store.read_json(ADAPTER_INDEX)] == [
        label in (3, 4, 7) for label in range(10)
    ]
