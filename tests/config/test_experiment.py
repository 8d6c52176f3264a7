"""Wrong knobs are named, with what was expected and the nearest that exists."""

import re

import pytest

from datadream import recipes
from datadream.config import ExperimentConfig, knobs, parse_config


def test_dotted_and_nested_changes_agree():
    dotted = ExperimentConfig().updated({"adapt.rank": 4, "classify.augment.rotation": 5})
    nested = ExperimentConfig().updated({"adapt": {"rank": 4}, "classify": {"augment": {"rotation": 5}}})
    assert dotted == nested
    assert dotted.adapt.batch_size == ExperimentConfig().adapt.batch_size


def test_round_trip_through_json():
    config = ExperimentConfig().updated({"grid.seeds": [1, 2], "classify.settings": ["real"]})
    assert parse_config(config.model_dump(mode="json")) == config


def test_a_preset_sets_its_knobs_but_not_those_that_are_given_beside_it():
    fast = recipes.digits(**{"generate.preset": "fast"}).generate
    assert (fast.steps, fast.scheduler, fast.cache_interval) == (15, "DPMSolverMultistepScheduler", 1)
    assert ExperimentConfig.model_validate({"generate": {"preset": "fast"}}).generate.steps == 15
    exact = recipes.digits(**{"generate.preset": "turbo"}).updated({"generate.preset": "exact"}).generate
    assert (exact.steps, exact.scheduler, exact.cache_interval) == (50, None, 1)
    turbo = ExperimentConfig().updated({"generate": {"steps": 9, "preset": "turbo"}}).generate
    assert (turbo.steps, turbo.scheduler, turbo.cache_interval) == (9, "DPMSolverMultistepScheduler", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generate.preset": "quick"}, "generate.preset is 'quick': input should be 'exact', 'fast' or 'turbo'."),
        ({"generate.guidance_interval": [0.8, 0.2]}, "the first number must not be larger than the second."),
        ({"adapt.rnak": 3}, "unknown config key 'adapt.rnak'. Did you mean 'adapt.rank'?"),
        ({"adpat.rank": 3}, "unknown config key 'adpat.rank'. Did you mean 'adapt.rank'?"),
        ({"adapt.rank": 0}, "adapt.rank is 0: input should be greater than or equal to 1."),
        ({"method": "datadream-clz"}, "Did you mean 'datadream-cls'?"),
        (
            {"generate.select.coverage": 0.9},
            "generate.select.coverage is 0.9: input should be greater than or equal to 1",
        ),
        ({"generate.select.max_candidates": 0}, "max_candidates is 0: input should be greater than or equal to 1."),
        ({"generate.select.max_shot_similarity": 1}, "max_shot_similarity is 1: input should be less than 1."),
        ({"generate.select.label_topk": 1}, "Did you mean 'generate.select.label_top_k'?"),
        ({"diffusion.resolution": 30}, "diffusion.resolution is 30: input should be a multiple of 8."),
    ],
)
def test_errors_name_the_value_and_the_fix(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        ExperimentConfig().updated(changes)
    assert "\n" not in str(caught.value)


def test_every_knob_is_documented():
    assert [name for name, text in knobs(ExperimentConfig).items() if len(text) < 10] == []


def test_learned_words_leave_no_tower_to_train():
    with pytest.raises(ValueError, match=r"^classify: context learns words and freezes both towers; leave image"):
        parse_config({"classify": {"context": 4, "image_tower": "full"}})
