"""One adapter trained by several ranks is the one that a single process trains, and goes on from its checkpoints."""

import copy
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors.torch
import torch

from datadream import recipes
from datadream.adapt.lora_trainer import AdapterTrainer, TrainedAdapter
from datadream.adapt.stage import adapter_units, train_adapters
from datadream.config import AdaptConfig
from datadream.methods import AdapterSpec, TrainingPhoto
from datadream.models.diffusion.pipeline import load_pipeline
from datadream.run.layout import adapter_checkpoint, adapter_weights
from datadream.run.store import RunStore
from datadream.runtime.collectives import Collectives
from datadream.runtime.workers import Workers
from tests.adapt.test_lora_trainer import PROMPTS, images
from tests.processes import kill_a_worker_after

CONFIG = AdaptConfig(steps_per_class=6, learning_rate=1e-3, warmup_steps=2, rank=4, batch_size=5)
SPEC = AdapterSpec("dataset", tuple(TrainingPhoto(f"{i}.png", PROMPTS[i % 2]) for i in range(6)), 2, 3)


class Meeting:
    """Where ranks on threads of one process add what they bring, in the order of their ranks."""

    def __init__(self, count: int) -> None:
        self.brought: dict[int, torch.Tensor] = {}
        self.barrier = threading.Barrier(count)


class ThreadRanks(Collectives):
    def __init__(self, rank: int, meeting: Meeting) -> None:
        super().__init__(rank, meeting.barrier.parties)
        object.__setattr__(self, "meeting", meeting)

    def sum(self, tensor: torch.Tensor) -> None:
        self.meeting.brought[self.rank] = tensor.clone()
        self.meeting.barrier.wait(60)
        total = sum(self.meeting.brought[rank] for rank in range(self.count))
        self.meeting.barrier.wait(60)
        tensor.copy_(total)


@pytest.fixture(scope="module")
def pipeline(pipeline_folder):
    return load_pipeline(str(pipeline_folder), None, torch.device("cpu"), torch.float32)


@pytest.fixture
def train(pipeline):
    def train(config: AdaptConfig = CONFIG, **settings) -> TrainedAdapter:
        return AdapterTrainer(copy.deepcopy(pipeline), config, 32).train_shared(
            SPEC, images(6), save_every=4, **settings
        )

    return train


def train_by(train, count: int, config: AdaptConfig = CONFIG) -> list[TrainedAdapter]:
    meeting = Meeting(count)
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(lambda rank: train(config, collectives=ThreadRanks(rank, meeting)), range(count)))


def assert_close(found: bytes, expected: bytes, tolerance: float = 1e-4) -> None:
    found, expected = safetensors.torch.load(found), safetensors.torch.load(expected)
    for key in expected:
        assert (found[key] - expected[key]).norm() / expected[key].norm() < tolerance, key


@pytest.mark.parametrize(
    "kill", [pytest.param(False, marks=pytest.mark.slow), pytest.param(True, marks=pytest.mark.soak)]
)
@pytest.mark.usefixtures("local_ray")
def test_on_ray_a_killed_worker_costs_the_steps_since_the_last_checkpoint(train, pipeline_folder, tmp_path, kill):
    """Or none is killed, and it is the adapter that two ranks train without Ray."""
    store = RunStore(str(tmp_path / "run"))
    folder, steps = tmp_path / "photos", 60 if kill else CONFIG.steps_per_class
    changes = {"data.source": str(folder), "diffusion.model": str(pipeline_folder), "cluster.checkpoint_steps": 20}
    adapt = CONFIG.model_copy(update={"steps_per_class": steps})
    config = recipes.digits(**changes).model_copy(update={"adapt": adapt})
    for number, image in enumerate(images(6)):
        (folder / f"class {number % 2}").mkdir(parents=True, exist_ok=True)
        image.save(folder / f"class {number % 2}" / f"{number}.png")
    photos = tuple(TrainingPhoto(f"class {i % 2}/{i}.png", PROMPTS[i % 2]) for i in range(6))
    (unit,) = adapter_units(store.url, [dataclasses.replace(SPEC, photos=photos)], config.adapt)
    with ThreadPoolExecutor(1) as threads:
        killed = threads.submit(kill_a_worker_after, store, adapter_checkpoint("dataset")) if kill else None
        train_adapters(store, [unit], config, Workers(2, 1, False))
    if killed:
        killed.result()
    assert store.read_json(unit.marker)["steps"] == 2 * steps
    expected = train_by(train, 2, config.adapt)[0]
    assert_close(store.read_bytes(adapter_weights("dataset")), expected.weights)
    assert not store.exists(adapter_checkpoint("dataset"))


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_ranks_trains_the_same_adapter(train, count):
    alone = train()
    ranks = train_by(train, count)
    assert len({trained.weights for trained in ranks}) == 1
    assert_close(ranks[0].weights, alone.weights)
    assert ranks[0].losses == pytest.approx(alone.losses, rel=1e-5)
    assert len(alone.losses) == 12


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(train):
    checkpoints, steps = [], []
    whole = train(save=checkpoints.append)
    assert len(checkpoints) == 2
    resumed = train(checkpoint=checkpoints[-1], on_step=lambda step, losses: steps.append(step))
    assert steps == [9, 10, 11, 12]
    assert resumed.weights == whole.weights
    assert resumed.losses == whole.losses


def test_a_loss_that_breaks_ends_it_at_the_next_checkpoint(train):
    steps = []
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step \d"):
        train(
            CONFIG.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0}),
            on_step=lambda step, losses: steps.append(step),
        )
    assert steps == [1, 2, 3, 4]


def test_out_of_memory_says_what_to_lower(train):
    def full(step: int, losses: torch.Tensor) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(MemoryError, match=r"Lower adapt\.batch_size"):
        train(on_step=full)


def test_checkpoints_that_differ_between_ranks_are_refused(train):
    checkpoints = []
    train(save=checkpoints.append)
    meeting = Meeting(2)
    with ThreadPoolExecutor(2) as threads, pytest.raises(RuntimeError, match="the workers see different checkpoints"):
        list(
            threads.map(
                lambda rank: train(collectives=ThreadRanks(rank, meeting), checkpoint=checkpoints[rank]),
                range(2),
            )
        )


def test_a_checkpoint_is_resumed_by_another_number_of_ranks(train):
    checkpoints = []
    whole = train(save=checkpoints.append)
    meeting = Meeting(2)
    with ThreadPoolExecutor(2) as threads:
        ranks = list(
            threads.map(
                lambda rank: train(collectives=ThreadRanks(rank, meeting), checkpoint=checkpoints[0]),
                range(2),
            )
        )
    assert_close(ranks[0].weights, whole.weights)
