"""A classifier's files hold all of it, whatever was trained."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load, save

from datadream.classify.files import SavedClassifier
from datadream.run.store import RunStore

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
    saved = classifier(state)
    store, files = RunStore(str(tmp_path)), saved.to_files()
    assert files.keys() == weights | {"head.safetensors", "labels.json"}
    for name, data in files.items():
        store.write_bytes(f"classifier/real/{name}", data)
    assert SavedClassifier.read(store, "real").to_files() == files


def test_files_of_an_older_version_are_refused_with_the_way_out(tmp_path):
    store, files = RunStore(str(tmp_path)), classifier({}).to_files()
    labels, head = json.loads(files["labels.json"]), load(files["head.safetensors"])
    labels["lora"] = labels.pop("trained")
    del head["bias"]
    store.write_json("classifier/real/labels.json", labels)
    store.write_bytes("classifier/real/head.safetensors", save(head))
    with pytest.raises(ValueError, match="was written by another version") as caught:
        SavedClassifier.read(store, "real")
    said = str(caught.value)
    assert "labels.json has no 'trained', head.safetensors has no 'bias'" in said
    assert f"delete {tmp_path}/classifier/real and run `datadream classify {tmp_path}`" in said


def classifier(state: dict[str, torch.Tensor]) -> SavedClassifier:
    return SavedClassifier(
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
