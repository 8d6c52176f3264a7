"""Images that adapters make while they are trained: to look at, and without a trace in what is learnt."""

from __future__ import annotations

import io

import pytest
from PIL import Image, ImageChops

from datadream.adapt.lora_trainer import AdapterTrainer
from datadream.config import AdaptConfig
from datadream.methods import AdapterSpec
from tests.adapt.test_lora_trainer import CONFIG, images, spec, trainer
from tests.tiny_models import PIXELS, save_pipeline

SHORT = CONFIG.model_copy(update={"steps_per_class": 5})
WITH_SAMPLES = SHORT.model_copy(update={"samples_every": 2})
SPECS = [spec("first", 3), spec("second", 4)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("base"))


def trained(folder, config: AdaptConfig, specs: list[AdapterSpec]) -> tuple[list[bytes], list[dict[int, bytes]]]:
    """Weights and samples by step of adapters that are trained side by side."""
    made: list[dict[int, bytes]] = [{} for _ in specs]
    on_samples = [own.__setitem__ for own in made]
    outcomes = trainer(folder, config).train(specs, [images() for _ in specs], on_samples=on_samples)
    return [outcome.weights for outcome in outcomes], made


def test_weights_are_the_same_bytes_with_samples_and_without(base):
    with_samples, made = trained(base, WITH_SAMPLES, SPECS)
    without, none_made = trained(base, SHORT, SPECS)
    assert with_samples == without
    assert [list(own) for own in made] == [[2, 4], [2, 4]]
    assert none_made == [{}, {}]


def test_a_sample_is_its_own_adapters_whatever_is_trained_beside_it(base):
    together = trained(base, WITH_SAMPLES, SPECS)[1]
    for own, alone in zip(together, (trained(base, WITH_SAMPLES, [each])[1][0] for each in SPECS), strict=True):
        # Side by side, sums are rounded otherwise.
        assert difference(own[4], alone[4]) <= 2
    assert difference(together[0][4], together[1][4]) > 2
    assert difference(together[0][2], together[0][4]) > 2


def test_a_sample_shows_four_images(base):
    ours: AdapterTrainer = trainer(base, WITH_SAMPLES)
    made: dict[int, bytes] = {}
    ours.train_shared(spec(), images(), on_samples=[made.__setitem__])
    assert {step: picture(png).size for step, png in made.items()} == dict.fromkeys((2, 4), (2 * PIXELS, 2 * PIXELS))


def picture(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def difference(a: bytes, b: bytes) -> int:
    """The largest of any pixel and channel, in 0 to 255."""
    return max(high for _, high in ImageChops.difference(picture(a), picture(b)).getextrema())
