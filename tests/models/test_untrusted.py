"""Models of strangers: files that would run code when they are read are refused, and do not run it."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from datadream.models.clip.load import load_clip
from datadream.models.diffusion.pipeline import load_pipeline
from tests.tiny_clip import save_tiny_clip


class Malice:
    """Writes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self):
        return Path.write_text, (self._proof, "code of a stranger ran")


@pytest.fixture
def proof(tmp_path) -> Path:
    """Would be there if code had run."""
    return tmp_path / "proof"


def load(pipeline: Path):
    return load_pipeline(str(pipeline), None, torch.device("cpu"), torch.float32)


def test_the_pickle_would_run(proof):
    pickle.loads(pickle.dumps(Malice(proof)))
    assert proof.exists()


def test_weights_of_a_pipeline_that_are_a_pickle(pipeline_folder, tmp_path, proof):
    folder = tmp_path / "pipeline"
    shutil.copytree(pipeline_folder, folder)
    for weights in (folder / "unet").glob("*.safetensors"):
        weights.unlink()
    torch.save(Malice(proof), folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match="Unable to load weights"):
        load(folder)
    assert not proof.exists()


def test_code_beside_a_pipeline(pipeline_folder, tmp_path, proof):
    folder = tmp_path / "pipeline"
    shutil.copytree(pipeline_folder, folder)
    (folder / "unet" / "mine.py").write_text(f"open({str(proof)!r}, 'w').close()\nclass Unet: ...\n")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"unet": ["mine", "Unet"]}))
    with pytest.raises(ValueError, match="contains custom code in mine.py"):
        load(folder)
    assert not proof.exists()


def test_weights_of_a_clip_that_are_a_pickle(tmp_path, proof):
    folder = tmp_path / "clip"
    save_tiny_clip(folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    torch.save({"state_dict": Malice(proof)}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_clip(f"local-dir:{folder}", None, "cpu")
    assert not proof.exists()
