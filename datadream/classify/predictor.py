"""Classify photos with what a run has learnt.

datadream.load_classifier("runs/demo").predict(["photo.jpg"])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import get_args

import fsspec
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datadream.classify.files import SavedClassifier
from datadream.config import WHITE, Setting
from datadream.data.decode import as_shown, decode_photo
from datadream.models.clip.export import save_checkpoint
from datadream.models.clip.load import load_clip
from datadream.models.clip.trainable import CONTEXT, load_trainable_state, make_trainable, merge_lora
from datadream.run.choice import choose_setting
from datadream.run.layout import ClassifierMarker, classifier_marker
from datadream.run.store import RunStore

BATCH = 64
Photo = Image.Image | np.ndarray | str | PathLike[str]
"""A picture, uint8 pixels [height, width, 3] or [height, width], or the path or fsspec URL of a file."""


class Member:
    """A CLIP with the weights of one setting merged into it, and its text head."""

    def __init__(self, saved: SavedClassifier, device: torch.device | str) -> None:
        """Raises ValueError or FileNotFoundError when the CLIP that the run names cannot be loaded here."""
        self.model_id, self._device = saved.model, device
        self.clip = load_clip(saved.model, saved.pretrained, device)
        if saved.learning is not None:
            # The seed draws initial weights that the saved ones replace.
            make_trainable(self.clip.model, **saved.learning, seed=0)
            load_trainable_state(self.clip.model, saved.state)
            merge_lora(self.clip.model)
        self.clip.model.requires_grad_(False)
        # Prompts give a head without bias, so that only a Gaussian one has any.
        self.head = "Gaussian" if saved.bias.any() else "learned" if CONTEXT in saved.state else "prompts"
        # The factor of the cosine similarities is folded into the text head once.
        self._weight, self._bias = (saved.logit_scale * saved.text_features).to(device), saved.bias.to(device)

    @torch.inference_mode()
    def probabilities(self, pixels: list[Tensor]) -> Tensor:
        """Of each class for each image, fp32 [n, n_classes]; `pixels` are images as `clip.preprocess` makes them."""
        features = self.clip.encode_image(torch.stack(pixels).to(self._device))
        return (features @ self._weight.T + self._bias).softmax(dim=1).cpu()


class Classifier:
    """The classifiers of one or several settings, whose mean probability decides, and the names of the classes."""

    def __init__(self, saved: Sequence[SavedClassifier], device: torch.device | str) -> None:
        """Raises ValueError or FileNotFoundError when a CLIP that the run names cannot be loaded here."""
        self.classes = saved[0].classes
        self._background = saved[0].background
        self._members = [Member(each, device) for each in saved]

    def predict(self, images: Photo | Sequence[Photo]) -> list[dict[str, float]]:
        """Probability of each class for each photo, the most probable class first.

        Raises FileNotFoundError for a path that does not exist, ValueError for a file that is no photo.
        """
        # A single photo too: a text and an array are sequences themselves.
        photos = [images] if isinstance(images, (Image.Image, np.ndarray, str, PathLike)) else images
        found: list[dict[str, float]] = []
        for answer in self.answers(photos):
            if isinstance(answer, Exception):
                raise answer
            found.append(answer)
        return found

    def answers(self, photos: Sequence[Photo]) -> Iterator[dict[str, float] | Exception]:
        """What `predict` says of each photo in turn, a batch at a time; for one that cannot be read, why."""
        for start in range(0, len(photos), BATCH):
            batch = photos[start : start + BATCH]
            unread: dict[int, Exception] = {}
            pixels: list[list[Tensor]] = []
            # One photo after the other, to its small squares: 64 open photos of 48 megapixels would be 9 GB.
            for place, photo in enumerate(batch):
                try:
                    image = _open(photo, self._background)
                except Exception as error:  # every file system has its own
                    unread[place] = error
                else:
                    pixels.append([member.clip.preprocess(image) for member in self._members])
            shares = iter(self._shares(pixels))
            for place in range(len(batch)):
                yield unread[place] if place in unread else next(shares)

    def _shares(self, pixels: Sequence[Sequence[Tensor]]) -> list[dict[str, float]]:
        """Of each class, the most probable first; of each photo, as each member's CLIP takes it."""
        if not pixels:
            return []
        votes = [own.probabilities([row[place] for row in pixels]) for place, own in enumerate(self._members)]
        found = []
        for row in torch.stack(votes).mean(dim=0):
            # Stable: equally probable classes stay in the order of their labels.
            order, values = row.argsort(descending=True, stable=True).tolist(), row.tolist()
            found.append({self.classes[label]: values[label] for label in order})
        return found

    def check_checkpoint(self) -> None:
        """Raises ValueError where there is no one checkpoint to save: several classifiers vote, or a Gaussian head or
        learned words decide, which open_clip has not."""
        member, *others = self._members
        if others:
            raise ValueError(
                "classifiers that vote are no one checkpoint. Export one by --setting real, or use load_classifier."
            )
        if member.head != "prompts":
            what = "a gda- classifier" if member.head == "Gaussian" else "a classifier of learned words"
            raise ValueError(
                f"{what} is no CLIP checkpoint: its head is not made of prompts that can be written. "
                "Export another setting with --setting, or use load_classifier."
            )

    def save_checkpoint(self, folder: str | Path) -> Path:
        """Write a checkpoint folder that plain open_clip loads as local-dir:<folder>, with LoRA merged into it.

        Raises ValueError when the folder is not empty, and as `check_checkpoint` does.
        """
        self.check_checkpoint()
        member = self._members[0]
        return save_checkpoint(member.clip, member.model_id, folder)


def load_classifier(run: str | PathLike[str], setting: Setting | Sequence[Setting] | None = None) -> Classifier:
    """The classifier of a run, given its folder or fsspec URL, on the GPU if there is one.

    Without a `setting`, what `choose_setting` takes: the best on validation photos, where there are any.
    Several settings vote, by the mean of their probabilities.
    Raises ValueError when the run holds no classifier, or none of that setting.
    """
    store = RunStore(fspath(run))
    found = {
        name: ClassifierMarker.from_json(store.read_json(classifier_marker(name)))
        for name in get_args(Setting)
        if store.exists(classifier_marker(name))
    }
    if not found:
        raise ValueError(
            f"run {store.url!r} holds no classifier. Train one with `datadream classify`, or, for a table of runs, "
            "give one of the folders in its cells/."
        )
    asked = (setting,) if isinstance(setting, str) else tuple(setting or ())
    for name in asked:
        if name not in found:
            raise ValueError(f"run {store.url!r} holds no classifier {name!r}. It holds: {', '.join(found)}.")
    names = asked or choose_setting(found).settings
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Classifier([SavedClassifier.read(store, name) for name in names], device)


def _open(photo: Photo, background: str = WHITE) -> Image.Image:
    if isinstance(photo, Image.Image):
        return as_shown(photo, background)
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim not in (2, 3) or (photo.ndim == 3 and photo.shape[2] != 3):
            raise ValueError(
                f"photo of {photo.dtype} {list(photo.shape)}: expected uint8 [height, width, 3] or [height, width]."
            )
        return Image.fromarray(photo).convert("RGB")
    path = fspath(photo)
    try:
        with fsspec.open(path) as file:
            data = file.read()
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"photo {path!r} does not exist, or is no file.") from None
    return decode_photo(data, path, background)
