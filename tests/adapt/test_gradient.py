"""What a step asks of the device depends on nothing that a recording would not see."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from tests.adapt.test_lora_trainer import images, spec, trainer
from tests.tiny_models import save_pipeline

ASKS_THE_HOST = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "unique")
"""Operations that wait for the device, or bring it what Python made."""


@pytest.mark.parametrize(
    ("prediction_type", "n_photos"),
    [
        ("epsilon", 1),
        ("v_prediction", 4),
        pytest.param("epsilon", 4, marks=pytest.mark.soak),
        pytest.param("v_prediction", 1, marks=pytest.mark.soak),
    ],
)
def test_the_operations_of_one_step_are_those_of_every_other(tmp_path, prediction_type, n_photos):
    """Recorded with one batch, and replayed with another after the weights have changed in place; the prompts of four
    photos differ."""
    ours = trainer(save_pipeline(tmp_path, prediction_type))
    specs = [spec(str(seed), seed, n_photos) for seed in (3, 4)]
    training = ours._start(specs, [images(n_photos)] * 2, steps=20)
    first = training._sample()
    recorded = make_fx(lambda *inputs: ours._gradient(*inputs), tracing_mode="real")(*first)
    asked = {str(node.target) for node in recorded.graph.nodes}
    assert not {name for name in asked for word in ASKS_THE_HOST if word in name}
    for _ in range(4):
        training.step()
    later = training._sample()
    assert [None if x is None else x.shape for x in later] == [None if x is None else x.shape for x in first]
    for found, expected in zip(recorded(*later), ours._gradient(*later), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
