"""Paths count from where the command was typed."""

import pytest

from datadream import recipes
from datadream.config import is_same_place, located


def test_paths_become_absolute_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("photos", "models/sd", "clip", "ViT-B-16-quickgelu", "home/photos", "digits"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("weights.pt", "openai"):
        (tmp_path / name).touch()
    typed = {
        "data.source": "photos",
        "diffusion.model": "./models/sd",
        "classify.model": "local-dir:clip",
        "classify.pretrained": "weights.pt",
    }
    found = located(recipes.paper(**typed))
    assert found.data.source == str(tmp_path / "photos")
    assert found.diffusion.model == str(tmp_path / "models" / "sd")
    assert found.classify.model == f"local-dir:{tmp_path}/clip"
    assert found.classify.pretrained == str(tmp_path / "weights.pt")
    assert located(recipes.paper(**{"data.source": "~/photos"})).data.source == str(tmp_path / "home" / "photos")
    assert located(recipes.paper(**{"data.source": "./digits"})).data.source == str(tmp_path / "digits")
    names = recipes.paper(**{"classify.model": "ViT-B-16-quickgelu", "classify.pretrained": "openai"})
    for config in (names, recipes.digits(), recipes.paper(**{"data.source": "s3://photos/x"})):
        assert located(config) is config
    assert located(found) is found


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("photos", "/home/me/photos", True),
        ("./my/photos", "/home/me/my/photos", True),
        ("photos", "/home/me/myphotos", False),
        ("/home/me/photos", "/home/you/photos", False),
        (None, "photos", False),
        (None, None, True),
    ],
)
def test_places_typed_from_different_directories(old, new, same):
    assert is_same_place(old, new) is same
