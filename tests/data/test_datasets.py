"""Photos are found, split and decoded."""

import pytest
from PIL import Image

from datadream.config import DataConfig
from datadream.data.datasets import open_dataset, open_source
from datadream.data.known import KNOWN
from tests.data.known.unpacked import UNPACK, few_classes


def test_digits_parts_are_disjoint_and_large_enough():
    dataset = open_source("digits").dataset()
    parts = [{photo.key for photo in part} for part in (dataset.pool, dataset.val, dataset.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    assert len(parts[2]) >= 1000
    assert {photo.label for photo in dataset.test} == set(range(10))
    assert not dataset.flippable


def test_digits_read_white_on_black():
    source = open_source("digits")
    image = source.read(source.dataset().pool[0].key)
    assert image.size == (32, 32)
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == (0, 0, 0)


def test_flat_folder_is_all_pool(photo_folder):
    dataset = open_source(str(photo_folder)).dataset()
    assert dataset.class_names == ("cat", "dog-2 legs", "plain & <bold>")
    assert len(dataset.pool) == 18
    assert dataset.val == dataset.test == ()


def test_folder_with_parts(photo_folder, tmp_path):
    root = tmp_path / "parts"
    root.mkdir()
    photo_folder.rename(root / "train")
    (root / "test" / "cat").mkdir(parents=True)
    Image.new("L", (30, 30)).save(root / "test" / "cat" / "x.webp")
    dataset = open_source(str(root)).dataset()
    assert len(dataset.pool) == 18
    assert [(photo.key, photo.label) for photo in dataset.test] == [("test/cat/x.webp", 0)]
    assert open_source(str(root)).read("test/cat/x.webp").mode == "RGB"


def test_class_of_the_test_part_that_training_lacks(photo_folder, tmp_path):
    root = tmp_path / "parts"
    root.mkdir()
    photo_folder.rename(root / "train")
    (root / "test" / "cow").mkdir(parents=True)
    with pytest.raises(ValueError, match="has class 'cow', which the training photos lack"):
        open_source(str(root)).dataset()


def test_class_folder_without_images(photo_folder):
    (photo_folder / "empty one").mkdir()
    with pytest.raises(ValueError, match=r"class folder '.*empty one' holds no image"):
        open_source(str(photo_folder)).dataset()


def test_unknown_source():
    with pytest.raises(FileNotFoundError, match="data.source is 'digitss'"):
        open_source("digitss")


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """The config of Oxford Pets with two classes and photos that can be read."""
    monkeypatch.setitem(KNOWN, "pets", few_classes("pets", (2, 3, 0, 2), (2, 2, 1, 2)))
    UNPACK["pets"](tmp_path / "oxford_pets")
    for path in tmp_path.glob("oxford_pets/images/*.jpg"):
        Image.new("RGB", (40, 30), (len(path.name), 90, 200)).save(path)
    return DataConfig(source=str(tmp_path), dataset="pets", n_shots=1)


def test_a_data_set_of_the_paper_as_it_was_unpacked(pets):
    dataset = open_dataset(pets)
    assert dataset.class_names == ("abyssinian", "american bulldog")
    assert [len(part) for part in (dataset.pool, dataset.val, dataset.test)] == [3, 0, 2]
    assert (dataset.flippable, dataset.few_val) == (True, 4)
    # Workers read photos by their keys alone.
    assert open_source(pets.source).read(dataset.test[0].key).size == (40, 30)


def test_a_known_data_set_with_the_shots_of_somebody_else(pets, tmp_path):
    for name in ("Abyssinian", "American Bulldog"):
        folder = tmp_path / "shots" / "seed0" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(folder / "a.jpg")
    dataset = open_dataset(pets.model_copy(update={"shots": "shots/seed0"}))
    assert [photo.key for photo in dataset.pool] == [
        f"shots/seed0/{name}/a.jpg" for name in ("Abyssinian", "American Bulldog")
    ]
    assert len(dataset.test) == 2


def test_shots_of_somebody_else_need_test_photos(tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN, "eurosat", few_classes("eurosat", (2, 6, 0, 0)))
    UNPACK["eurosat"](tmp_path)
    with pytest.raises(ValueError, match="no official split to take test photos from. Put split_zhou_EuroSAT.json"):
        open_dataset(DataConfig(source=str(tmp_path), dataset="eurosat", shots="2750"))


@pytest.mark.parametrize("source", ["digits", "nowhere", "hf-hub:owner/pets"])
def test_a_known_data_set_is_in_a_folder(source):
    with pytest.raises(FileNotFoundError, match="data.source must be the folder where Oxford-IIIT Pet was unpacked"):
        open_dataset(DataConfig(source=source, dataset="pets"))
