"""Pipelines load from the forms in which people have them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from datadream.models.diffusion.pipeline import load_pipeline

CPU = torch.device("cpu")


def save_as_half(folder: Path, parts: tuple[str, ...]) -> None:
    """Leave a folder as publishers of the fp16 variant alone do."""
    for part in parts:
        (weights,) = (folder / part).glob("*.safetensors")
        weights.rename(weights.with_suffix(".fp16.safetensors"))


@pytest.mark.parametrize("parts", [("unet", "vae", "text_encoder"), ("unet",)])
def test_a_folder_of_which_parts_are_saved_in_half_precision_alone(pipeline_folder, tmp_path, parts):
    folder = shutil.copytree(pipeline_folder, tmp_path / "model")
    save_as_half(folder, parts)
    loaded, plain = (load_pipeline(str(path), None, CPU, torch.float32) for path in (folder, pipeline_folder))
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(loaded, part).state_dict(), getattr(plain, part).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_no_image_needs_is_never_loaded(pipeline_folder, tmp_path):
    """Indices list an image processor and a safety checker, whose folders are often left out of a copy."""
    folder = shutil.copytree(pipeline_folder, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    pipeline = load_pipeline(str(folder), None, CPU, torch.float32)
    assert pipeline.feature_extractor is None
    assert pipeline.safety_checker is None
