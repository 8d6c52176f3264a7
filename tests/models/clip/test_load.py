"""What a CLIP's ids mean, and loading."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from datadream.models.clip import load
from datadream.models.clip.load import check_clip, check_prompts, input_size, load_clip
from tests.models.plain_clip import features, plain
from tests.tiny_clip import PIXELS, save_tiny_clip


def test_a_loaded_clip_is_open_clips_own(folder, images):
    clip = load_clip(folder, None, "cpu")
    for ours, theirs in zip(
        features(clip.model, folder, images), features(plain(folder), folder, images), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert (clip.size, clip.mean, clip.std) == (PIXELS, (0.5,) * 3, (0.25,) * 3)
    assert input_size(folder) == PIXELS
    assert input_size("ViT-L-14-336") == 336


@pytest.mark.parametrize(
    ("model", "pretrained", "error", "message"),
    [
        ("ViT-B-16-quickglu", "openai", ValueError, r"ViT-B-16-quickglu.*Did you mean 'ViT-B-16-quickgelu'"),
        ("ViT-B-16-quickgelu", "opnai", ValueError, r"'opnai'.*Did you mean 'openai'"),
        ("ViT-B-16-quickgelu", None, ValueError, r"pretrained is unset.*openai"),
        ("local-dir:/nowhere", None, FileNotFoundError, r"/nowhere/open_clip_config.json"),
        ("package://datadream/nothing", None, FileNotFoundError, r"has no folder 'nothing'"),
        ("hf-hub:", None, ValueError, r"Hub id is missing"),
        ("ViT-B/16", "openai", ValueError, r"with QuickGELU, .*Use classify.model=ViT-B-16-quickgelu"),
    ],
)
def test_unknown_ids_are_explained(model, pretrained, error, message):
    with pytest.raises(error, match=message):
        check_clip(model, pretrained)
    with pytest.raises(error, match=message):
        load_clip(model, pretrained, "cpu")


def test_a_program_is_not_run_for_its_weights(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "ViT-B-16.pt")
    for read in (check_clip, partial(load_clip, device="cpu")):
        with pytest.raises(ValueError, match="is a TorchScript program. Use classify.pretrained=openai, which names"):
            read("ViT-B-16-quickgelu", str(tmp_path / "ViT-B-16.pt"))


@pytest.mark.parametrize("form", ["state", "safetensors"])
def test_openais_files_need_its_activation(tmp_path, form):
    """Without it they would load, and be some points worse."""
    path, size = tmp_path / f"weights.{form}", torch.tensor(224)
    if form == "state":
        torch.save({"input_resolution": size}, path)
    else:
        save_file({"input_resolution": size}, path)
    with pytest.raises(ValueError, match="trained with QuickGELU.*Use classify.model=ViT-B-16-quickgelu"):
        check_clip("ViT-B-16", str(path))
    check_clip("ViT-B-16-quickgelu", str(path))


@pytest.mark.parametrize("form", ["state", "safetensors"])
def test_openais_files_are_loaded(tmp_path, form, monkeypatch, caplog):
    """In half precision, with sizes among the weights."""
    vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    architecture = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "toy-quickgelu", architecture)
    weights = {name: tensor.half() for name, tensor in open_clip.CLIP(**architecture).state_dict().items()}
    state = weights | {"input_resolution": torch.tensor(16), "context_length": torch.tensor(77)}
    path = tmp_path / f"weights.{form}"
    if form == "state":
        torch.save(state, path)
    else:
        save_file(state, path)
    loaded = load_clip("toy-quickgelu", str(path), "cpu").model.state_dict()
    assert all(torch.equal(tensor, weights[name].float()) for name, tensor in loaded.items())
    assert loaded.keys() == weights.keys()
    assert "initialized randomly" not in caplog.text


def test_files_that_do_not_tell_their_activation_fit_either(tmp_path):
    torch.save({"visual.proj": torch.ones(1)}, tmp_path / "weights.pt")
    save_file({"visual.proj": torch.ones(1)}, tmp_path / "weights.safetensors")
    for model in ("ViT-B-16", "ViT-B-16-quickgelu"):
        for file in tmp_path.iterdir():
            check_clip(model, str(file))


@pytest.mark.parametrize(
    ("one", "other"),
    [("a Cat", "a cat"), ("a  cat ", "a cat"), ("a " * 90 + "cat", "a " * 90 + "dog")],
)
def test_prompts_that_the_text_encoder_cannot_tell_apart(one, other):
    check_prompts("ViT-B-16-quickgelu", ["a cat", "a dog"])
    with pytest.raises(ValueError, match="are the same to the text encoder.*Name one otherwise with data.names"):
        check_prompts("ViT-B-16-quickgelu", ["a fish", one, other])


def test_a_folder_without_its_scheme_is_pointed_out(folder):
    path = folder.removeprefix("local-dir:")
    with pytest.raises(ValueError, match=f"use local-dir:{path}"):
        check_clip(path, None)


def test_a_folder_without_weights_or_config_is_refused(tmp_path: Path):
    folder = save_tiny_clip(tmp_path / "clip")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        check_clip(f"local-dir:{folder}", None)
    (folder / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match="no open_clip config"):
        check_clip(f"local-dir:{folder}", None)


def test_known_ids_pass(folder):
    check_clip("ViT-B-16-quickgelu", "openai")
    check_clip("ViT-B/32", "laion2b_s34b_b79k")
    check_clip("ViT-L-14-quickgelu", "openai")
    check_clip("RN50-quickgelu", "openai")
    check_clip(folder, None)


def test_an_unknown_hub_id_is_told_before_weights_are_wanted(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for model in ("hf-hub:nobody/no-such-clip", "hf-hub:a/b/c"):
        with pytest.raises(ValueError, match=f"{model}'.*Check the id and the network"):
            check_clip(model, None)


def test_a_hub_model_without_its_weights_is_not_a_random_one(folder, monkeypatch):
    """open_clip would warn, and go on with what it has drawn."""
    there = Path(folder.removeprefix("local-dir:"))

    def handed_out(_: str, filename: str | None = None, **__: object) -> str:
        if filename != load.CONFIG:
            raise OSError("429 Too Many Requests")
        return str(there / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", handed_out)
    monkeypatch.setattr("open_clip.factory.download_pretrained_from_hf", handed_out)
    with pytest.raises(ValueError, match="classify.model 'hf-hub:owner/clip' cannot be loaded"):
        load_clip("hf-hub:owner/clip", None, "cpu")


def test_a_slash_in_a_name_asks_for_the_same_tokenizer(monkeypatch):
    asked = []
    monkeypatch.setattr(open_clip, "get_tokenizer", asked.append)
    for model in ("ViT-H/14-worldwide-quickgelu", "hf-hub:owner/clip"):
        load.load_tokenizer(model)
    assert asked == ["ViT-H-14-worldwide-quickgelu", "hf-hub:owner/clip"]


def test_models_that_two_threads_build_say_nothing_and_leave_warnings_on(folder, monkeypatch, caplog):
    """The first to end used to restore what the second had silenced, and the second silenced all for good."""
    create, both = load.open_clip.create_model, Barrier(2, timeout=60)

    def together(*args, **kwargs):
        both.wait()
        model = create(*args, **kwargs)
        both.wait()
        return model

    monkeypatch.setattr(load.open_clip, "create_model", together)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(load.without_weights, (folder, folder)))
    assert caplog.messages == []
    logging.getLogger("datadream").warning("memory is short")
    assert caplog.messages == ["memory is short"]
