"""Shots that somebody else sampled get the labels of their classes, whichever usual name a folder has."""

import pytest
from fsspec.implementations.local import LocalFileSystem

from datadream.data.known import given_shots
from datadream.data.listing import Listing
from tests.data.known.unpacked import GOLDFISH, TENCH, photos

SEED0 = "real_train_fewshot/seed0"
SUNGLASS, SUNGLASSES = "n04355933", "n04356056"


def labelled(root, names: tuple[str, ...], *folders: str) -> dict[str, int]:
    """Labels of folders that hold one photo each."""
    photos(root / SEED0, *(f"{folder}/0.jpg" for folder in folders))
    pool = [(f"train/{name}/0.jpg", label) for label, name in enumerate(names)]
    shots = given_shots(LocalFileSystem(), str(root), SEED0, Listing(names, {"pool": pool}))
    return {path.removeprefix(f"{SEED0}/").removesuffix("/0.jpg"): label for path, label in shots}


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (("american_bulldog", "wheaten_terrier"), ("American Bulldog", "Wheaten Terrier")),
        (("2012 Acura RL Sedan", "2012 Ram C/V Van"), ("Acura RL Sedan 2012", "Ram C/V Van 2012")),
        (("F-16A/B", "F/A-18"), ("F-16A/B", "F/A-18")),
        (("indoor apse", "indoor_seats theater"), ("indoor apse", "indoor_seats theater")),
        ((TENCH, GOLDFISH), (TENCH, "goldfish")),
        ((SUNGLASS, SUNGLASSES), ("sunglasses", "dark sunglasses")),
        (("n01558993", "n02123045"), ("robin", "tabby")),  # American robin and tabby cat in CLIP's prompts
    ],
)
def test_a_folder_is_called_as_its_class_is_anywhere(tmp_path, names, folders):
    assert labelled(tmp_path, names, *folders) == {folder: label for label, folder in enumerate(folders)}


def test_a_folder_is_called_as_that_of_the_data_set(tmp_path):
    photos(tmp_path / SEED0, "AnnualCrop/1.jpg", "Sea or Lake/2.jpg")
    pool = [("2750/AnnualCrop/1.jpg", 0), ("2750/SeaLake/2.jpg", 1)]
    listing = Listing(("Annual Crop Land", "Sea or Lake"), {"pool": pool})
    shots = given_shots(LocalFileSystem(), str(tmp_path), SEED0, listing)
    assert shots == [(f"{SEED0}/AnnualCrop/1.jpg", 0), (f"{SEED0}/Sea or Lake/2.jpg", 1)]


def test_what_does_not_fit_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="data.shots is 'real_train_fewshot/seed0': .* has no such folder"):
        labelled(tmp_path, ("cat", "dog"))
    with pytest.raises(ValueError, match="has no photo for 1 of 2 classes, the first is 'dog'. Add its folder"):
        labelled(tmp_path, ("cat", "dog"), "cat")
    with pytest.raises(ValueError, match="has a folder 'cow', which is no class of data.dataset"):
        labelled(tmp_path, ("cat", "dog"), "cow")
