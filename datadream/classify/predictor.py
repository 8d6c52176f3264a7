"""Classify photos with what a run has learnt.

datadream.load_classifier("runs/demo").predict(["photo.jpg"])
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import get_args

import fsspec
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datadream.classify.files import SavedClassifier
from datadream.config import Setting
from datadream.data.datasets import decode_photo
from datadream.models.clip.export import save_checkpoint
from datadream.models.clip.load import load_clip
from datadream.models.clip.trainable import load_trainable_state, make_trainable, merge_lora
from datadream.run.layout import classifier_marker
from datadream.run.store import RunStore

BATCH = 64
Photo = Image.Image | np.ndarray | str | PathLike[str]
"""A picture, uint8 pixels [height, width, 3] or [height, width], or the path or fsspec URL of a file."""


class Classifier:
    """A CLIP with the weights of one setting merged into it, and the names of the classes."""

    def __init__(self, saved: SavedClassifier, device: torch.device | str) -> None:
        """Raises ValueError or FileNotFoundError when the CLIP that the run names cannot be loaded here."""
        self.classes = saved.classes
        self._model_id, self._device = saved.model, device
        self._clip = load_clip(saved.model, saved.pretrained, device)
        if saved.learning is not None:
            make_trainable(self._clip.model, **saved.learning, seed=0)
            load_trainable_state(self._clip.model, saved.state)
            merge_lora(self._clip.model)
        self._clip.model.requires_grad_(False)
        self._weight, self._bias = (saved.logit_scale * saved.text_features).to(device), saved.bias.to(device)

    def predict(self, images: Photo | Sequence[Photo]) -> list[dict[str, float]]:
        """Probability of each class for each photo, the most probable class first.

        Raises FileNotFoundError for a path that does not exist, ValueError for a file that is no photo.
        """
        photos = [images] if isinstance(images, (Image.Image, np.ndarray, str, PathLike)) else images
        batches = (photos[start : start + BATCH] for start in range(0, len(photos), BATCH))
        return [self._named(row) for batch in batches for row in self._probabilities(batch)]

    def save_checkpoint(self, folder: str | Path) -> Path:
        """Write a checkpoint folder that plain open_clip loads as local-dir:<folder>, with LoRA merged into it.

        Raises ValueError when the folder is not empty, or when a Gaussian head decides, which no text tower holds.
        """
        if self._bias.any():
            raise ValueError(
                "a gda- classifier is no CLIP checkpoint: its head is not made of prompts. "
                "Export another setting with --setting, or use load_classifier."
            )
        return save_checkpoint(self._clip, self._model_id, folder)

    @torch.inference_mode()
    def _probabilities(self, photos: Sequence[Photo]) -> Tensor:
        pixels = torch.stack([self._clip.preprocess(_open(photo)) for photo in photos]).to(self._device)
        return (self._clip.encode_image(pixels) @ self._weight.T + self._bias).softmax(dim=1).cpu()

    def _named(self, probabilities: Tensor) -> dict[str, float]:
        order = probabilities.argsort(descending=True, stable=True).tolist()
        values = probabilities.tolist()
        return {self.classes[label]: values[label] for label in order}


def load_classifier(run: str | PathLike[str], setting: Setting | None = None) -> Classifier:
    """The classifier of a run, given its folder or fsspec URL, on the GPU if there is one.

    Without a `setting`, the one that is best on validation photos; of equals, and where a run has none, the one that
    trained on more.
    Raises ValueError when the run holds no classifier, or none of that setting.
    """
    store = RunStore(fspath(run))
    known = [name for name in get_args(Setting) if store.exists(classifier_marker(name))]
    if not known:
        raise ValueError(
            f"run {store.url!r} holds no classifier. Train one with `datadream classify`, or, for a table of runs, "
            "give one of the folders in its cells/."
        )
    if setting is not None and setting not in known:
        raise ValueError(f"run {store.url!r} holds no classifier {setting!r}. It holds: {', '.join(known)}.")
    validated = _validated(store, known)
    chosen: str = setting or max(map(str, reversed(known)), key=validated.__getitem__)
    return Classifier(SavedClassifier.read(store, chosen), "cuda" if torch.cuda.is_available() else "cpu")


def _validated(store: RunStore, settings: Sequence[str]) -> dict[str, float]:
    """Accuracy on validation photos by setting; all equal where shots or test photos chose, for these figures do not
    compare."""
    found = {name: store.read_json(classifier_marker(name)) for name in settings}
    # Older versions did not say: what is then read names what is missing.
    chosen_by = {metrics.get("chosen_by") for metrics in found.values()} - {None}
    comparable = chosen_by <= {"val"}
    return {name: (metrics["val_top1"] or 0.0) if comparable else 0.0 for name, metrics in found.items()}


def _open(photo: Photo) -> Image.Image:
    if isinstance(photo, Image.Image):
        return photo.convert("RGB")
    if isinstance(photo, np.ndarray):
        return _from_pixels(photo)
    path = fspath(photo)
    try:
        with fsspec.open(path) as file:
            data = file.read()
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"photo {path!r} does not exist, or is no file.") from None
    return decode_photo(data, path)


def _from_pixels(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(
            f"photo of {pixels.dtype} {list(pixels.shape)}: expected uint8 [height, width, 3] or [height, width]."
        )
    return Image.fromarray(pixels).convert("RGB")
