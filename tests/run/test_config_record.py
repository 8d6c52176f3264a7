"""A folder belongs to one config."""

import shutil
from contextlib import nullcontext

import pytest

from datadream import recipes
from datadream.config import ExperimentConfig, located
from datadream.data.datasets import open_source
from datadream.data.few_shot import sample_shots
from datadream.run.config_record import check_config, record_config, recorded_config
from datadream.run.layout import CONFIG, FEW_SHOT
from datadream.run.store import RunStore


def test_another_config_is_refused_by_key(store):
    config = recipes.digits()
    record_config(store, config)
    check_config(store, config.updated({"cluster.workers": 1}))
    with pytest.raises(ValueError, match=r"adapt.rank \(16 there, 4 now\); seed \(0 there, 7 now\)|seed.*adapt.rank"):
        check_config(store, config.updated({"adapt.rank": 4, "seed": 7}))


@pytest.mark.parametrize(("recipe", "refused"), [(recipes.digits, False), (ExperimentConfig, True)])
def test_a_run_that_does_not_say_was_made_without_lora_dropout(store, recipe, refused):
    """Versions before it knew no such knob."""
    config = recipe()
    older = config.model_dump(mode="json")
    del older["classify"]["lora_dropout"]
    store.write_json(CONFIG, {"config": older})
    assert recorded_config(store) == config.updated({"classify.lora_dropout": 0.0})
    with (
        pytest.raises(ValueError, match=r"classify.lora_dropout \(0.0 there, 0.1 now\)") if refused else nullcontext()
    ):
        check_config(store, config)


@pytest.mark.parametrize(("recipe", "refused"), [(recipes.digits, False), (recipes.laptop, True)])
def test_a_run_that_does_not_say_was_trained_on_squares_and_goes_on_with_them(store, recipe, refused):
    config = recipe()
    older = config.model_dump(mode="json")
    del older["classify"]["augment"]["crop_from"]
    store.write_json(CONFIG, {"config": older})
    squares = config.updated({"classify.augment.crop_from": "square"})
    assert recorded_config(store) == squares
    check_config(store, squares)
    told = pytest.raises(ValueError, match=r"classify.augment.crop_from \(square there, photo now\)")
    with told if refused else nullcontext():
        check_config(store, config)


@pytest.mark.parametrize(("recipe", "refused"), [(recipes.digits, False), (ExperimentConfig, True)])
def test_a_run_that_does_not_say_keeps_the_steps_that_its_adapters_had(store, recipe, refused):
    config = recipe()
    older = config.model_dump(mode="json")
    del older["adapt"]["step_law"]
    store.write_json(CONFIG, {"config": older})
    found = recorded_config(store)
    assert found.adapt.step_law == ("crops" if refused else "batches")
    check_config(store, found)
    told = pytest.raises(ValueError, match=r"adapt.step_law \(crops there, batches now\)")
    with told if refused else nullcontext():
        check_config(store, config)


def test_a_path_that_names_nothing_from_here_does_not_replace_the_one_that_does(
    photo_folder, tmp_path, store, monkeypatch
):
    """The same command, typed from another directory."""
    begun = located(recipes.digits(**{"data.source": str(photo_folder), "data.n_shots": 2}))
    record_config(store, begun)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    typed = located(begun.updated({"data.source": photo_folder.name}))
    with pytest.raises(ValueError, match=r"which is not in '.*/elsewhere'; run .* was begun with '/.*Give that path"):
        check_config(store, typed)
    record_config(store, typed)
    assert recorded_config(store) == begun
    begun_on_digits, digits = RunStore(str(tmp_path / "digits run")), located(recipes.digits())
    (tmp_path / "elsewhere" / "digits").mkdir()  # a folder of this name is not meant by it
    record_config(begun_on_digits, digits)
    check_config(begun_on_digits, located(digits))
    monkeypatch.chdir(photo_folder.parent)
    check_config(store, located(begun.updated({"data.source": photo_folder.name})))


@pytest.mark.parametrize("content", ["", "[]", '{"architectures": ["CLIPModel"]}', '{"config": null}'])
def test_a_config_that_is_not_ours_is_named(store, content):
    store.write_bytes(CONFIG, content.encode())
    with pytest.raises(ValueError, match=r"config.json' is not that of a run. Give the folder of a run or"):
        recorded_config(store)


def test_photos_that_moved_are_found_again(photo_folder, tmp_path, store):
    """The folder around them was renamed, and a command may be typed from another directory."""
    config = recipes.digits(**{"data.source": str(photo_folder), "data.n_shots": 2})
    dataset = open_source(str(photo_folder)).dataset()
    record_config(store, config)
    store.write_json(FEW_SHOT, sample_shots(dataset, 2, 0, config.data.prompt).to_json())
    moved = photo_folder.rename(tmp_path / "elsewhere")
    elsewhere = config.updated({"data.source": str(moved)})
    check_config(store, elsewhere)
    record_config(store, elsewhere)
    assert recorded_config(store) == elsewhere
    next((moved / "cat").iterdir()).unlink()
    with pytest.raises(ValueError, match="data.source"):
        check_config(store, config.updated({"data.source": str(shutil.copytree(moved, tmp_path / "third"))}))
