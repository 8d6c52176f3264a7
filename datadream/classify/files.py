"""A setting's classifier as small files: what was learnt, the text head, and the labels, all for one named CLIP."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self

from safetensors.torch import load, save
from torch import Tensor

from datadream.config import WHITE
from datadream.models.clip.trainable import CONTEXT, LORA_ENDINGS
from datadream.run.layout import CLASSIFIERS
from datadream.run.store import RunStore

HEAD_TENSORS = ("text_features", "logit_scale", "bias")
LABEL_FIELDS = ("classes", "prompts", "model", "pretrained", "trained")
HEAD, LABELS = "head.safetensors", "labels.json"
# LoRA is apart from the weights of a fully trained image tower, which are large.
LORA, IMAGE_TOWER, WORDS = WEIGHTS = "lora.safetensors", "image_tower.safetensors", "context.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedClassifier:
    """All that it takes to classify photos as in training.

    The logits of unit image features are logit_scale * features @ text_features.T + bias.
    """

    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    model: str
    """As classify.model."""
    pretrained: str | None
    """As classify.pretrained."""
    learning: dict[str, Any] | None
    """What learnt, as `make_trainable` takes it; None for zero-shot."""
    state: dict[str, Tensor]
    """The trained weights of `trainable_state`."""
    text_features: Tensor
    """Unit features of the prompts, or a Gaussian head's weights; fp32 [n_classes, D]."""
    logit_scale: Tensor
    """Factor of the cosine similarities, a scalar; 1 for a Gaussian head."""
    bias: Tensor
    """fp32 [n_classes]; zeros but for a Gaussian head."""
    background: str = WHITE
    """As data.background."""

    def to_files(self) -> dict[str, bytes]:
        """Content by file name."""
        labels = {
            "classes": list(self.classes),
            "prompts": list(self.prompts),
            "model": self.model,
            "pretrained": self.pretrained,
            "trained": self.learning,
            # Files that do not say are of photos over white, as all of earlier versions are.
            **({"background": self.background} if self.background != WHITE else {}),
        }
        files = {
            HEAD: save({name: getattr(self, name) for name in HEAD_TENSORS}),
            LABELS: (json.dumps(labels, indent=1, ensure_ascii=False) + "\n").encode(),
        }
        # A file without tensors is not written; safetensors refuses tensors that are views with gaps.
        weights: dict[str, dict[str, Tensor]] = {name: {} for name in WEIGHTS}
        for key, tensor in self.state.items():
            name = LORA if key.endswith(LORA_ENDINGS) else WORDS if key == CONTEXT else IMAGE_TOWER
            weights[name][key] = tensor.contiguous()
        return files | {name: save(own) for name, own in weights.items() if own}

    @classmethod
    def read(cls, store: RunStore, setting: str) -> Self:
        """Read a committed setting of a run; raises ValueError where another version wrote other files."""
        folder = f"{CLASSIFIERS}/{setting}"
        labels, head = store.read_json(f"{folder}/{LABELS}"), load(store.read_bytes(f"{folder}/{HEAD}"))
        missing = [f"{LABELS} has no {name!r}" for name in LABEL_FIELDS if name not in labels]
        missing += [f"{HEAD} has no {name!r}" for name in HEAD_TENSORS if name not in head]
        if missing:
            raise ValueError(
                f"classifier {setting!r} of run {store.url!r} was written by another version: {', '.join(missing)}. "
                f"Train it again: delete {store.url_of(folder)} and run `datadream classify {store.url}`."
            )
        state: dict[str, Tensor] = {}
        for name in WEIGHTS:
            if store.exists(f"{folder}/{name}"):
                state |= load(store.read_bytes(f"{folder}/{name}"))
        return cls(
            classes=tuple(labels["classes"]),
            prompts=tuple(labels["prompts"]),
            model=labels["model"],
            pretrained=labels["pretrained"],
            learning=labels["trained"],
            state=state,
            background=labels.get("background", WHITE),
            **{name: head[name] for name in HEAD_TENSORS},
        )
