"""A classifier's files hold all of it, whatever was trained."""

from __future__ import annotations

import pytest
import torch

from datadream.classify.saved import SavedClassifier
from datadream.run_store import RunStore

LORA_STATE = {"transformer.resblocks.0.attn.q.lora_A": torch.ones(2, 3)}
IMAGE_STATE = {"visual.conv1.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize(
    ("state", "weights"),
    [
        ({}, set()),
        (LORA_STATE, {"lora.safetensors"}),
        (LORA_STATE | IMAGE_STATE, {"lora.safetensors", "image_tower.safetensors"}),
    ],
)
def test_what_is_written_is_read(tmp_path, state, weights):
    saved = SavedClassifier(
        classes=("grün", "red"),
        prompts=("a", "b"),
        model="local-dir:x",
        pretrained=None,
        learning={"rank": 2, "alpha": 4.0, "projections": ["q"], "image_tower": "auto"} if state else None,
        state=state,
        text_features=torch.eye(2),
        logit_scale=torch.tensor(100.0),
        bias=torch.zeros(2),
    )
    store, files = RunStore(str(tmp_path)), saved.to_files()
    assert files.keys() == weights | {"head.safetensors", "labels.json"}
    for name, data in files.items():
        store.write_bytes(f"classifier/real/{name}", data)
    assert SavedClassifier.read(store, "real").to_files() == files
