"""Where everything of a run lies, by paths relative to its folder."""

from __future__ import annotations

CONFIG = "config.json"
LOCK = "lock.json"
"""Who writes the run; there only while somebody does."""
FEW_SHOT = "few_shot.json"
ADAPTERS = "adapters"
ADAPTER_WEIGHTS = "pytorch_lora_weights.safetensors"
"""The name by which diffusers finds LoRA weights in a folder."""
ADAPTER_INDEX = "adapters/index.json"
CHUNKS = "chunks"
FEATURES = "features"
CANDIDATES = "stages/candidates.json"
"""How many candidates of each class are asked for so far, where filters choose images."""
SELECTION = "dataset/selection.json"
"""The marker that the images to publish are chosen."""
DATASET = "dataset/dataset.json"
CLASSIFIERS = "classifier"
METRICS = "metrics.json"
SCRATCH = ".ray-train-"
"""How the folders begin that a stage uses while it runs, and removes."""


def adapter_weights(adapter_id: str) -> str:
    """The weights of an adapter."""
    return f"{ADAPTERS}/{adapter_id}/{ADAPTER_WEIGHTS}"


def adapter_marker(adapter_id: str) -> str:
    """The marker that an adapter is trained."""
    return f"{ADAPTERS}/{adapter_id}/adapter.json"


def adapter_checkpoint(adapter_id: str) -> str:
    """What the training of an adapter goes on from when it is interrupted; of no use once it is done."""
    return f"{ADAPTERS}/{adapter_id}/checkpoint.pt"


def progress_file(stage: str) -> str:
    """Where a running stage says how far it is."""
    return f"stages/{stage}-running.json"


def classifier_marker(setting: str) -> str:
    """The marker that a setting's classifier is trained and tested."""
    return f"{CLASSIFIERS}/{setting}/{METRICS}"


def classifier_checkpoint(setting: str, training: str) -> str:
    """What a training of a setting goes on from when it is interrupted; of no use once the setting is done."""
    return f"{CLASSIFIERS}/{setting}/checkpoints/{training}.pt"
