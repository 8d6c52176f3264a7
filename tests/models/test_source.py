"""Model ids resolve, and wrong ones are told without loading anything."""

import json
import shutil

import huggingface_hub
import pytest
from diffusers.schedulers import KarrasDiffusionSchedulers

from datadream.models.source import UNFIT, check_pipeline, check_scheduler, resolve


def test_package_ids_resolve_inside_the_package():
    assert resolve("package://datadream/models").endswith("datadream/models")
    assert resolve("owner/name") == "owner/name"
    with pytest.raises(FileNotFoundError, match="no folder 'nowhere'"):
        resolve("package://datadream/nowhere")
    with pytest.raises(FileNotFoundError, match="no installed package 'nosuch'"):
        resolve("package://nosuch/x")


def test_pipelines_are_recognised(pipeline_folder, tmp_path):
    check_pipeline(str(pipeline_folder), None)
    with pytest.raises(ValueError, match="no diffusers pipeline: it has no model_index.json"):
        check_pipeline(str(tmp_path), None)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(ValueError, match="is a StableDiffusionXLPipeline: need a Stable Diffusion 1.x or 2.x"):
        check_pipeline(str(tmp_path), None)


def test_missing_weights_are_named_with_what_is_there(pipeline_folder, tmp_path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "model")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(folder / "vae" / "weights.safetensors.part")
    with pytest.raises(ValueError, match=r"no weights for its vae \(there is: vae/config.json, vae/weights"):
        check_pipeline(str(folder), None)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ValueError, match="no weights for its vae .there is: no such folder"):
        check_pipeline(str(folder), None)


def test_a_pipeline_in_the_cache_needs_no_network(pipeline_folder, monkeypatch):
    class ConnectError(Exception):
        """As that of the Hub's client: neither an OSError nor a ValueError."""

    def refuse(*_: object) -> None:
        raise ConnectError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda _, file, **__: str(pipeline_folder / file))
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", refuse)
    check_pipeline("owner/name", None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: refuse())
    with pytest.raises(ValueError, match=r"'owner/name' is neither .*\(ConnectError\). Check the id and the network"):
        check_pipeline("owner/name", None)


def test_schedulers_are_known_before_work_starts():
    for name in {None, *(kind.name for kind in KarrasDiffusionSchedulers)} - UNFIT.keys():
        check_scheduler(name)
    for name, reason in UNFIT.items():
        with pytest.raises(ValueError, match=f"generate.scheduler is '{name}': {reason}"):
            check_scheduler(name)
    with pytest.raises(ValueError, match="generate.scheduler is 'DDIM': .* Known: DDIMScheduler, "):
        check_scheduler("DDIM")
    with pytest.raises(ValueError, match="Did you mean 'DDIMScheduler'"):
        check_scheduler("DDIMSheduler")
