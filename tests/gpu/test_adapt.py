"""Training on a GPU is a plain loop's, and a checkpoint goes on to the same bits."""

from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from datadream.adapt.lora_trainer import TrainedAdapter
from datadream.runtime.cuda_graph import Recorded
from tests.adapt.test_lora_trainer import CONFIG, images, plain_loop, spec, train_one, trainer
from tests.adapt.test_train_shared import CONFIG as SHARED_CONFIG
from tests.adapt.test_train_shared import SPEC
from tests.gpu.memory import memory_for
from tests.tiny_models import save_pipeline


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_losses_are_those_of_a_plain_loop(tmp_path, device, prediction_type, dtype, tolerance):
    folder = save_pipeline(tmp_path / "pipeline", prediction_type)
    trained = train_one(trainer(folder, device=device, dtype=dtype))
    weights, losses = plain_loop(folder, 3, device, dtype)
    assert trained.losses == pytest.approx(losses, rel=tolerance)
    assert len(losses) == CONFIG.steps_per_class
    if dtype == torch.float32:
        ours = {key.replace("text_model.", ""): own for key, own in safetensors.torch.load(trained.weights).items()}
        for key, plain in weights.items():
            assert (ours[key] - plain).norm() / plain.norm() < 1e-3, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_goes_on_to_the_same_bits(pipeline_folder, device, dtype):
    """With plain attention: backward, a GPU's fused kernels add up in an order of their own each time."""
    checkpoints = []

    def train(**settings):
        fresh = trainer(pipeline_folder, SHARED_CONFIG, device, dtype)
        with sdpa_kernel(SDPBackend.MATH):
            return fresh.train_shared(SPEC, images(6), save_every=4, **settings)

    whole = train(save=checkpoints.append)
    resumed = train(checkpoint=checkpoints[-1])
    assert resumed.losses == whole.losses
    assert resumed.weights == whole.weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorded_step_gives_the_same_bits(pipeline_folder, device, dtype):
    """Batches have one prompt or two, so that there are two recordings; the second training finds both."""

    def train(recorded: bool) -> list[TrainedAdapter]:
        ours = trainer(pipeline_folder, SHARED_CONFIG, device, dtype)
        if recorded:
            ours._gradient = Recorded(ours._gradient)
        with sdpa_kernel(SDPBackend.MATH):
            return [ours.train_shared(each, images(6)) for each in (SPEC, replace(SPEC, seed=4))]

    for one, other in zip(train(recorded=True), train(recorded=False), strict=True):
        assert one.losses == other.losses
        assert one.weights == other.weights


def test_a_compiled_training_is_the_same(pipeline_folder, device):
    """As adapt.compile=true has it: with inductor's code and, on a GPU, as a recording."""
    specs = [spec("a", 1), spec("b", 2)]
    found, expected = (
        trainer(pipeline_folder, CONFIG.model_copy(update={"compile": compiled}), device).train(specs, [images()] * 2)
        for compiled in (True, False)
    )
    for one, other in zip(found, expected, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-3)


def test_where_memory_ends_the_group_is_halved_and_nothing_else_changes(pipeline_folder, device, caplog):
    """On a GPU batches are large enough that activations are what fills it."""
    batch_size = 256 if device.type == "cuda" else 3
    config = CONFIG.model_copy(update={"batch_size": batch_size, "steps_per_class": 3})
    specs = [spec(str(seed), seed) for seed in range(4)]
    ours = trainer(pipeline_folder, config, device)

    def train_alone() -> list[list[float]]:
        return [ours.train([one], [images()])[0].losses for one in specs]

    with memory_for(device, train_alone, ours, "_train", most=1) as alone:
        together = ours.train(specs, [images()] * 4)
    assert "out of memory with 4 adapters side by side: going on with 2" in caplog.text
    assert [one.losses for one in together] == [pytest.approx(losses, rel=1e-5) for losses in alone]
