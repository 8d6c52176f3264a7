"""Classes or images that are added to an old run: its own keep labels, photos, adapters and images; only what it
lacks is made."""

import hashlib
import logging
import shutil
from pathlib import Path

import pytest

from datadream import recipes
from datadream.adapt.artifacts import are_committed, commit_adapter
from datadream.adapt.extended import take_adapters
from datadream.adapt.lora_trainer import TrainedAdapter
from datadream.adapt.stage import adapter_units
from datadream.cli import main, overrides
from datadream.cli.parser import make_parser
from datadream.config import ExperimentConfig
from datadream.data.datasets import open_source
from datadream.data.few_shot import FewShotSet
from datadream.experiment.experiment import Experiment
from datadream.generate.extended import equal_chunks, load_copier
from datadream.hashing import sha256
from datadream.methods import make_plan
from datadream.run.cell import Cell
from datadream.run.config_record import record_config
from datadream.run.layout import DATASET, FEW_SHOT, ChunkMarker, adapter_marker, adapter_weights
from datadream.run.store import RunStore

NEW = "ant"  # before all others in the alphabet


def add_class(folder: Path, name: str = NEW, like: str = "cat") -> None:
    for photo in sorted((folder / like).iterdir()):
        new = folder / name / photo.name
        new.parent.mkdir(exist_ok=True)
        image = open_source(str(folder)).read(f"{like}/{photo.name}")
        image.rotate(90).save(new)


def config_of(folder: Path, **changes):
    few = {"data.source": str(folder), "data.n_shots": 2, "generate.images_per_class": 4, "generate.chunk_size": 2}
    few |= {
        "method": "datadream-cls",
        "adapt.steps_per_class": 2,
        "generate.steps": 2,
        "classify.steps": 2,
        "classify.settings": ["synthetic"],
    }
    return recipes.laptop(**few | {"cluster.workers": 1} | changes)


@pytest.fixture
def old(tmp_path, photo_folder) -> RunStore:
    """A run that has begun, before a class was added."""
    store, config = RunStore(str(tmp_path / "old")), config_of(photo_folder)
    record_config(store, config)
    store.write_json(FEW_SHOT, Cell(config, store).few_shot.to_json())
    add_class(photo_folder)
    return store


def extended(tmp_path, photo_folder, old: RunStore, **changes) -> Cell:
    store = RunStore(str(tmp_path / "new"))
    return Cell(config_of(photo_folder, extends=old.url, **changes), store)


def test_new_classes_come_behind_and_the_old_keep_labels_and_photos(tmp_path, photo_folder, old):
    before, after = (
        cell.few_shot for cell in (Cell(config_of(photo_folder), old), extended(tmp_path, photo_folder, old))
    )
    assert after.class_names == (*before.class_names, NEW)
    assert after.shots[:-1] == before.shots
    assert all(key.startswith(f"{NEW}/") for key in after.shots[-1])
    assert [photo for photo in after.test if photo.label < 3] == list(before.test)
    assert {photo.label for photo in after.test} == {0, 1, 2, 3}


def test_photos_that_old_classes_gained_meanwhile_change_nothing_of_them(tmp_path, photo_folder, old):
    before = extended(tmp_path, photo_folder, old).few_shot
    image = open_source(str(photo_folder)).read("cat/0.png")
    for number in range(5):
        image.rotate(5 * number + 5).save(photo_folder / "cat" / f"later {number}.png")
    assert extended(tmp_path, photo_folder, old).few_shot == before


def test_the_plan_of_old_classes_is_the_old_plan(tmp_path, photo_folder, old):
    """What makes taking over right: seeds, photos and prompts are equal, so that what they make is."""
    new = extended(tmp_path, photo_folder, old)
    before, after = make_plan(Cell(config_of(photo_folder), old).few_shot, new.config), new.plan
    assert after.adapters[:-1] == before.adapters
    assert after.images[:-1] == before.images


def test_a_run_can_be_extended_again(tmp_path, photo_folder, old):
    new = extended(tmp_path, photo_folder, old)
    record_config(new.store, new.config)
    new.store.write_json(FEW_SHOT, new.few_shot.to_json())
    add_class(photo_folder, "bee", like="dog-2 legs")
    again = Cell(config_of(photo_folder, extends=new.store.url), RunStore(str(tmp_path / "newer")))
    assert again.few_shot.class_names == (*new.few_shot.class_names, "bee")
    assert again.few_shot.shots[:-1] == new.few_shot.shots


def test_a_run_that_goes_on_names_classes_that_have_come_and_the_command_that_takes_them_in(photo_folder, old, caplog):
    caplog.set_level(logging.WARNING, "datadream")
    Experiment(config_of(photo_folder), old.url).check_inputs()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        f"data.source has 1 classes that this run lacks, '{NEW}': they are left out. To take them in: datadream run "
        f"--run NEW --extend {old.url}"
    )
    shutil.rmtree(photo_folder / NEW)
    caplog.clear()
    Experiment(config_of(photo_folder), old.url).check_inputs()
    assert not caplog.records


def test_what_does_not_fit_is_one_line(tmp_path, photo_folder, old, capsys):
    def error(*words: str) -> str:
        assert main(["run", "--run", str(tmp_path / "new"), *words]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "no run at" in error("--extend", str(tmp_path / "nowhere"))
    assert "made with another config: adapt.rank (16 there, 4 now)" in error("--extend", old.url, "adapt.rank=4")
    assert "--recipe digits beside --extend" in error("--extend", old.url, "--recipe", "digits")
    assert "a table cannot grow" in error("--extend", old.url, "grid.seeds=[0,1]")
    shutil.rmtree(photo_folder / NEW)
    assert "is extended by nothing: data.source has no class that it lacks" in error("--extend", old.url)
    assert "images_per_class is 3, where it has 4" in error("--extend", old.url, "generate.images_per_class=3")
    shutil.rmtree(photo_folder / "cat")
    assert "class 'cat' of the run that is extended is gone" in error("--extend", old.url)
    assert not (tmp_path / "new").exists()


def trained(old: RunStore, photo_folder, labels=(0, 1, 2)) -> None:
    """What adapt and generate leave of these classes of the old run: an adapter, and the first of two chunks."""
    cell = Cell(config_of(photo_folder), old)
    for label in labels:
        commit_adapter(
            old, cell.plan.adapters[label], TrainedAdapter(b"weights %d" % label, [0.5], 1, 1.0, {}), cell.config
        )
    for chunk in cell.chunks[::2]:
        old.write_bytes(chunk.file, (data := chunk.chunk_id.encode()))
        old.write_json(chunk.marker, ChunkMarker(n_images=2, sha256=sha256(data)).to_json())


def test_adapters_of_equal_photos_are_taken_as_they_are_and_damaged_ones_are_not(tmp_path, photo_folder, old):
    trained(old, photo_folder)
    old.write_bytes(adapter_weights("class-00002"), b"other weights")
    new = extended(tmp_path, photo_folder, old)
    units = adapter_units(new.store.url, new.plan.adapters, new.config.adapt)
    take_adapters(new, units)
    assert are_committed(units) == [True, True, False, False]
    for file in (adapter_marker("class-00001"), adapter_weights("class-00001")):
        assert new.store.read_bytes(file) == old.read_bytes(file)


def test_an_adapter_of_all_classes_is_not_taken_and_neither_are_its_images(tmp_path, photo_folder, old):
    config = config_of(photo_folder, method="datadream-dset")
    cell = Cell(config, old)
    commit_adapter(old, cell.plan.adapters[0], TrainedAdapter(b"weights", [0.5], 1, 1.0, {}), config)
    new = extended(tmp_path, photo_folder, old, method="datadream-dset")
    units = adapter_units(new.store.url, new.plan.adapters, new.config.adapt)
    take_adapters(new, units)
    assert are_committed(units) == [False]
    assert equal_chunks(new) == []


def test_images_are_taken_that_are_of_equal_adapters_and_what_was_written(tmp_path, photo_folder, old):
    trained(old, photo_folder)
    new = extended(tmp_path, photo_folder, old)
    assert equal_chunks(new) == [], "adapters come first"
    take_adapters(new, adapter_units(new.store.url, new.plan.adapters, new.config.adapt))
    # One was trained here after all, on a device of another kind.
    weights, marker = b"others", new.store.read_json(adapter_marker("class-00001"))
    new.store.write_bytes(adapter_weights("class-00001"), weights)
    new.store.write_json(adapter_marker("class-00001"), marker | {"weights_sha256": sha256(weights)})
    taken = equal_chunks(new)
    assert [unit.payload.chunk_id for unit in taken] == ["00000-000000", "00002-000000"]
    old.write_bytes(taken[1].payload.file, b"damaged")
    copy = load_copier(old.url, None)
    copy(taken[0])
    assert new.store.read_bytes(taken[0].payload.file) == b"00000-000000"
    with pytest.raises(ValueError, match="is not what was written"):
        copy(taken[1])
    assert not new.store.exists(taken[1].marker)
    assert [unit.payload.chunk_id for unit in equal_chunks(new)] == ["00002-000000"]
    shutil.rmtree(old.root)
    assert equal_chunks(new) == []


@pytest.mark.parametrize(
    ("method", "n_missing"),
    [("datadream-cls", 3), ("datadream-dset", 3), ("datadream-mix", 6)],  # of the two more images of a class
)
def test_more_images_of_the_same_classes_take_all_that_is_there(tmp_path, photo_folder, old, method, n_missing):
    """A part of the images tells whether the rest will pay, and is not lost."""
    shutil.rmtree(photo_folder / NEW)
    few = Cell(config_of(photo_folder, method=method), old)
    record_config(old, few.config)
    for spec in few.plan.adapters:
        commit_adapter(old, spec, TrainedAdapter(b"weights", [0.5], 1, 1.0, {}), few.config)
    for chunk in few.chunks:
        old.write_bytes(chunk.file, (data := chunk.chunk_id.encode()))
        old.write_json(chunk.marker, ChunkMarker(n_images=2, sha256=sha256(data)).to_json())
    new = extended(tmp_path, photo_folder, old, method=method, **{"generate.images_per_class": 6})
    Experiment(new.config, new.store.url).check_inputs()
    assert new.few_shot == few.few_shot
    units = adapter_units(new.store.url, new.plan.adapters, new.config.adapt)
    take_adapters(new, units)
    assert all(are_committed(units))
    taken = [unit.payload.chunk_id for unit in equal_chunks(new)]
    assert taken == [chunk.chunk_id for chunk in few.chunks]
    assert len(new.chunks) == len(taken) + n_missing


@pytest.mark.parametrize(("option", "knob"), [("--extend", "extends"), ("--from", "images_from")])
def test_the_same_command_goes_on_when_the_other_run_is_gone(tmp_path, photo_folder, old, option, knob):
    def config(other: str) -> ExperimentConfig:
        arguments = make_parser().parse_args(["run", "--run", str(tmp_path / "new"), option, other])
        return overrides.config_of(arguments, {"seed": 3})

    asked = config(f"{photo_folder}/../{Path(old.root).relative_to(tmp_path)}")
    assert (getattr(asked, knob), asked.seed) == (old.url, 3)
    record_config(RunStore(str(tmp_path / "new")), asked)
    shutil.rmtree(old.root)
    assert config(old.url) == asked
    with pytest.raises(FileNotFoundError, match="no run at '.*/another'"):
        config(str(tmp_path / "another"))
    other = "--from" if option == "--extend" else "--extend"
    crossed = make_parser().parse_args(["run", "--run", str(tmp_path / "new"), other, old.url])
    with pytest.raises(FileNotFoundError, match="no run at"):
        overrides.config_of(crossed, {})


def hashes(store: RunStore, folder: str) -> dict[str, str]:
    root = Path(store.root, folder)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.suffix in (".safetensors", ".parquet")
    }


@pytest.mark.soak
def test_only_new_classes_are_trained_and_generated(tmp_path, photo_folder):
    config, old = config_of(photo_folder), RunStore(str(tmp_path / "old"))
    Experiment(config, old.url).run()
    add_class(photo_folder)
    new = RunStore(str(tmp_path / "new"))
    assert main(["run", "--run", new.url, "--extend", old.url]) == 0
    for folder in ("adapters", "chunks"):
        before, after = hashes(old, folder), hashes(new, folder)
        assert {name: after[name] for name in before} == before
        assert all("00003" in name for name in after.keys() - before.keys())
    # Taken with all that was said of them: those that were not trained here say when they were.
    assert old.read_bytes(adapter_marker("class-00001")) == new.read_bytes(adapter_marker("class-00001"))
    assert new.read_json(DATASET)["class_names"] == [*old.read_json(DATASET)["class_names"], NEW]
    assert new.read_json(DATASET)["n_images"] == 16
    assert len(FewShotSet.from_json(new.read_json(FEW_SHOT)).class_names) == 4
    assert len(new.read_json("classifier/synthetic/metrics.json")["per_class"]) == 4
    shutil.rmtree(old.root)  # once the new run has its own
    assert main(["run", "--run", new.url]) == 0
    assert main(["run", "--run", new.url, "--extend", old.url]) == 0
