"""CLIP through open_clip: what its ids mean, and both towers without work that cannot matter."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from datadream.config import nearest
from datadream.models.clip.image_tower import encode_images
from datadream.models.clip.lora_dropout import LoraDropout
from datadream.models.clip.text_tower import TextTower
from datadream.models.source import resolve
from datadream.runtime.collectives import ALONE, Collectives

LOCAL_DIR, HF_HUB = FOLDERS = ("local-dir:", "hf-hub:")
QUICK_GELU = "-quickgelu"
"""How open_clip's names of architectures end that have OpenAI's activation."""
CONFIG = "open_clip_config.json"
"""The file that makes a folder or a Hub repository an open_clip model."""
WEIGHTS = (".safetensors", ".bin", ".pth")
"""Suffixes of the weights that open_clip finds in a folder."""


@dataclass(frozen=True, slots=True)
class ClipModel:
    """A CLIP with what it expects of its inputs."""

    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    """open_clip's evaluation transform: photo -> normalised float [3, size, size]."""
    tokenizer: Callable[[Sequence[str]], Tensor]
    """Prompts -> token ids [n, context]."""
    text_tower: TextTower

    def encode_text(
        self, tokens: Tensor, collectives: Collectives = ALONE, dropout: LoraDropout | None = None
    ) -> Tensor:
        """Unit features fp32 [n, D] of token ids [n, context] on the model's device; see TextTower.encode."""
        return self.text_tower.encode(tokens, collectives, dropout)

    def encode_image(self, images: Tensor, dropout: LoraDropout | None = None) -> Tensor:
        """Unit features fp32 [n, D] of images float [n, 3, size, size] on the model's device."""
        return encode_images(self.model, images, dropout)

    @property
    def size(self) -> int:
        """Side of the square input, in pixels."""
        size = self.model.visual.image_size
        return size if isinstance(size, int) else size[0]

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(self.model.visual.preprocess_cfg["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(self.model.visual.preprocess_cfg["std"])


def load_clip(model: str, pretrained: str | None, device: torch.device | str) -> ClipModel:
    """Load a CLIP in evaluation mode and fp32.

    A checkpoint folder holds its own weights, so `pretrained` is then not read.
    Raises FileNotFoundError or ValueError saying what is wrong with the ids and what would be right.
    """
    check_clip(model, pretrained)
    name = _open_clip_name(model)
    if name.startswith(FOLDERS):
        pretrained, weights = None, ""
    else:
        weights = f" with classify.pretrained {pretrained!r}"
    own = Path(pretrained) if pretrained and os.path.isfile(pretrained) and _is_openais(Path(pretrained)) else None
    try:
        with _no_word_of_random_weights() if own else nullcontext():
            clip, _, preprocess = open_clip.create_model_and_transforms(
                name,
                pretrained=None if own else pretrained,
                device=device,
                # Of a Hub id whose weights cannot be fetched open_clip would only warn, and hand out random ones.
                require_pretrained=own is None,
            )
        if own:
            clip.load_state_dict(_openais_state(own))
        tokenizer = load_tokenizer(model)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"classify.model {model!r}{weights} cannot be loaded: {error}") from error
    return ClipModel(clip.eval(), preprocess, tokenizer, TextTower(clip))


def check_clip(model: str, pretrained: str | None) -> None:
    """Check a model's ids without loading weights; of a Hub id the config is fetched, unless it is cached.

    Raises FileNotFoundError for a missing folder or file, ValueError for an unknown architecture or tag.
    """
    from huggingface_hub import hf_hub_download

    name = _open_clip_name(model)
    if name.startswith(LOCAL_DIR):
        folder = Path(name.removeprefix(LOCAL_DIR))
        config = folder / CONFIG
        if not config.is_file():
            raise FileNotFoundError(
                f"classify.model is {model!r}: {str(config)!r} does not exist. Use a folder that open_clip saved."
            )
        try:
            usable = "model_cfg" in json.loads(config.read_text())
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(
                f"classify.model is {model!r}: {str(config)!r} is no open_clip config with a model_cfg. "
                "Save the folder again."
            )
        if not any(path.suffix in WEIGHTS for path in folder.iterdir()):
            raise FileNotFoundError(
                f"classify.model is {model!r}: folder {str(folder)!r} holds no weights. "
                "Add open_clip_model.safetensors."
            )
    elif name == HF_HUB:
        raise ValueError(f"classify.model is {model!r}: the Hub id is missing. Use hf-hub:<owner>/<model>.")
    elif name.startswith(HF_HUB):
        try:
            hf_hub_download(name.removeprefix(HF_HUB), CONFIG)
        except Exception as error:  # those of the Hub's client are no OSError, such as httpx's of a proxy
            raise ValueError(
                f"classify.model is {model!r}: no open_clip model that the Hub hands out here "
                f"({type(error).__name__}). Check the id and the network, or use local-dir:<folder>."
            ) from None
    else:
        _check_architecture(model, pretrained)


def check_prompts(model: str, prompts: Sequence[str]) -> None:
    """Raises ValueError naming two classes' prompts that are the same to the text encoder, which reads small letters
    alone, joins blanks and cuts at its length."""
    rows = load_tokenizer(model)(list(prompts))
    found: dict[tuple[int, ...], str] = {}
    for prompt, row in zip(prompts, rows.tolist(), strict=True):
        if (other := found.setdefault(tuple(row), prompt)) is not prompt:
            raise ValueError(
                f"the prompts {other!r} and {prompt!r} are the same to the text encoder of {model!r}, which could not "
                "tell their classes apart. Name one otherwise with data.names, or shorten data.prompt."
            )


def load_tokenizer(model: str) -> Callable[[Sequence[str]], Tensor]:
    """Prompts -> token ids [n, context]; of a Hub id the tokenizer is fetched, unless it is cached."""
    return open_clip.get_tokenizer(_open_clip_name(model))


def input_size(model: str) -> int:
    """Side in pixels of the images that a model takes, without loading weights."""
    size = model_config(model)["vision_cfg"].get("image_size", 224)
    return size if isinstance(size, int) else size[0]


def model_config(model: str) -> dict[str, Any]:
    """open_clip's config of an architecture or a checkpoint folder."""
    return open_clip.get_model_config(_open_clip_name(model))


def without_weights(model: str) -> nn.Module:
    """The modules of a CLIP, on no device; only of a Hub id the config is fetched, unless it is cached.

    One layer stands for a text tower of Hugging Face's, which open_clip would fetch from there; neither has an
    nn.MultiheadAttention.
    Raises ValueError when the modules cannot be built.
    """
    config = model_config(model)
    if config["text_cfg"].get("hf_model_name"):
        config |= {"text_cfg": {"layers": 1, "block_type": "custom"}, "custom_text": True}

    try:
        # By its own name open_clip would download a Hub model's weights, whether it loads them or not.
        with tempfile.TemporaryDirectory() as folder, torch.device("meta"), _no_word_of_random_weights():
            Path(folder, CONFIG).write_text(json.dumps({"model_cfg": config}))
            return open_clip.create_model(LOCAL_DIR + folder, load_weights=False, device="meta")
    except (RuntimeError, OSError) as error:
        raise ValueError(f"classify.model {model!r} cannot be built: {error}") from error


@contextmanager
def _no_word_of_random_weights() -> Iterator[None]:
    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    # open_clip warns by the root logger. A filter of our own and not logging.disable, which two threads that restore
    # it would leave on.
    logging.root.addFilter(is_error)
    try:
        yield
    finally:
        logging.root.removeFilter(is_error)


def _open_clip_name(model: str) -> str:
    if (path := resolve(model)) != model:
        return LOCAL_DIR + path
    # open_clip knows ViT-B/16 by the name ViT-B-16; asked for the tokenizer of the first, it hands out another one.
    return model if model.startswith(FOLDERS) else model.replace("/", "-")


def _check_architecture(model: str, pretrained: str | None) -> None:
    known = open_clip.list_models()
    architecture = _open_clip_name(model)
    if architecture not in known:
        folder = f" For that folder use {LOCAL_DIR}{model}." if os.path.isdir(model) else ""
        hint = folder or f" {nearest(architecture, known)}".rstrip()
        raise ValueError(
            f"classify.model is {model!r}: no architecture of open_clip.{hint} "
            f"Checkpoint folders are {HF_HUB}<id>, {LOCAL_DIR}<folder> or package://<module>/<folder>."
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if pretrained is None:
        raise ValueError(
            f"classify.pretrained is unset, and {model!r} is only an architecture. "
            f"Use a file of weights, or a tag: {', '.join(tags)}."
        )
    has_quick_gelu = bool(open_clip.get_model_config(architecture).get("quick_gelu"))
    if tag := open_clip.get_pretrained_cfg(architecture, pretrained):
        needs_quick_gelu = bool(tag.get("quick_gelu"))
    elif os.path.isfile(pretrained):
        # Other files do not tell.
        needs_quick_gelu = _is_openais(Path(pretrained)) or has_quick_gelu
    else:
        hint = nearest(pretrained, tags)
        raise ValueError(
            f"classify.pretrained is {pretrained!r}: neither a file nor weights of {model!r}. {hint}".rstrip()
        )
    if needs_quick_gelu != has_quick_gelu:
        # It would load, and be some points worse without a word.
        right = architecture + QUICK_GELU if needs_quick_gelu else architecture.removesuffix(QUICK_GELU)
        raise ValueError(
            f"classify.pretrained {pretrained!r} was trained {'with' if needs_quick_gelu else 'without'} QuickGELU, "
            f"and classify.model {model!r} has another activation. Use classify.model={right}."
        )


def _openais_state(weights: Path) -> dict[str, Tensor]:
    """Weights as OpenAI saves them; open_clip 3.3 takes the sizes that lie among them for weights, and refuses all."""
    is_safe = weights.suffix == ".safetensors"
    state = load_file(weights) if is_safe else torch.load(weights, map_location="cpu", weights_only=True)
    sizes = ("input_resolution", "context_length", "vocab_size")
    return {name: tensor for name, tensor in state.items() if name not in sizes}


def _is_openais(weights: Path) -> bool:
    """Whether OpenAI saved these weights, all of which need QuickGELU: a state that knows its size.

    Raises ValueError for TorchScript, in which OpenAI published CLIP: it is a program, and no strangers' are run.
    """
    known = b"input_resolution"
    if weights.suffix == ".safetensors":
        with weights.open("rb") as file:
            return known in file.read(int.from_bytes(file.read(8), "little"))
    if not zipfile.is_zipfile(weights):
        return False
    with zipfile.ZipFile(weights) as archive:
        if any("/code/" in name for name in archive.namelist()):
            raise ValueError(
                f"classify.pretrained {str(weights)!r} is a TorchScript program. Use classify.pretrained=openai, "
                "which names the same weights, or save the program's state_dict() as safetensors."
            )
        return any(name.endswith("/data.pkl") and known in archive.read(name) for name in archive.namelist())
