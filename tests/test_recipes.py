"""The command that would make a run again, as others may see it."""

from __future__ import annotations

import shlex

import pytest

from datadream import recipes
from datadream.classify.search.successive_halving import candidates, rung_steps
from datadream.cli.overrides import config_of, dotted
from datadream.cli.parser import make_parser
from datadream.config import ExperimentConfig

CHANGES = [
    {},
    {"seed": 3, "data.prompt": "a 'close' photo: {name}", "diffusion.revision": "0123456"},
    {"data.source": "photos", "classify.search.learning_rates": [1e-4, 1e-5], "classify.pretrained": None},
    {"generate.preset": "fast", "adapt.text_encoder": False, "diffusion.revision": "on"},
    {"method": "is-synth", "generate.guidance_scale": 2.0},
    {"method": "plans.py:mine", "classify.steps": 7},
    {"method": "datadream-dset", "data.dataset": "imagenet", "adapt.epochs": 200, "data.source": "sets"},
    {"data.dataset": "dtd", "data.source": "sets"},
]


@pytest.mark.parametrize("recipe", recipes.RECIPES)
@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: ",".join(changes) or "none")
def test_the_command_of_a_config_gives_that_config(recipe, changes):
    config = recipes.by_name(recipe, changes)
    words = shlex.split(recipes.command(config))
    arguments, overrides = make_parser().parse_known_args([*words[1:], "--run", "new"])
    assert config_of(arguments, dotted(overrides, "new")) == config
    assert changes or words == ["datadream", "run", "--recipe", recipe]


def test_the_command_tells_neither_users_nor_hosts():
    private = {"data.source": "sftp://alice:s3cret@host.example/home/alice/photos", "cluster.address": "ray://host:1"}
    assert recipes.command(recipes.digits().updated(private)) == ("datadream run --recipe digits data.source=photos")


def test_a_config_that_a_recipe_did_not_make_for_its_method_is_told_whole():
    config = recipes.paper().updated({"method": "is-synth"})
    words = shlex.split(recipes.command(config))
    arguments, overrides = make_parser().parse_known_args([*words[1:], "--run", "new"])
    assert config_of(arguments, dotted(overrides, "new")) == config


def test_the_papers_numbers():
    config = recipes.paper()
    assert (config.data.n_shots, config.data.prompt) == (16, "a photo of a {name}")
    adapt, generate, classify = config.adapt, config.generate, config.classify
    assert (adapt.rank, adapt.epochs, adapt.batch_size, adapt.learning_rate) == (16, 200, 8, 1e-4)
    assert (adapt.weight_decay, adapt.schedule, adapt.warmup_steps, adapt.text_encoder) == (1e-2, "cosine", 100, True)
    assert (generate.images_per_class, generate.steps, generate.guidance_scale) == (500, 50, 2.0)
    assert (classify.model, classify.rank, classify.batch_size) == ("ViT-B-16-quickgelu", 16, 64)
    assert (classify.real_weight, classify.epochs, classify.select_on) == (0.8, 10, "val")
    searched = [
        {"learning_rate": rate, "weight_decay": decay, "mixup": mix, "cutmix": mix}
        for rate in (1e-4, 1e-5, 1e-6, 1e-7)
        for decay in (5e-4, 1e-4)
        for mix in (0.0, 1.0)
    ]
    assert classify.search.combinations == searched
    assert candidates(classify)[0] == searched[2]  # the knobs themselves are among the 16
    assert len(candidates(classify)) == 16
    assert rung_steps(790, classify.search.grace, classify.search.reduction) == [790]
    augment = classify.augment
    assert (augment.flip, augment.crop_scale, augment.interpolation) == (True, (0.25, 1.0), "bicubic")
    assert (augment.color_jitter, augment.saturation_jitter, augment.hue_jitter) == (0.4, 0.2, 0.1)
    assert (augment.jitter_share, augment.grayscale) == (0.8, 0.2)
    assert (augment.rand_augment, augment.blur, augment.solarize) == (0, 0, 0)


def test_the_authors_scripts_numbers():
    config, paper = recipes.paper_code(), recipes.paper()
    assert config.classify.search.combinations == []
    assert (config.classify.learning_rate, config.classify.weight_decay) == (1e-4, 1e-4)
    assert (config.classify.mixup, config.classify.cutmix, config.classify.lora_dropout) == (0, 0, 0.1)
    assert (config.classify.alpha, config.classify.projections, config.classify.epochs) == (32, ("q", "v"), 10)
    augment = config.classify.augment
    assert (augment.rand_augment, augment.rand_augment_magnitude) == (2, 9)
    assert (augment.blur, augment.solarize) == (0.2, 0.2)
    same = {"rand_augment": 0, "blur": 0.0, "solarize": 0.0}
    assert augment.model_copy(update=same) == paper.classify.augment
    assert (config.adapt, config.generate, config.data) == (paper.adapt, paper.generate, paper.data)


@pytest.mark.parametrize("recipe", ["paper", "paper-code"])
def test_is_synth_is_sampled_as_the_paper_did(recipe):
    """On DISEF's code; DataDream's own settings are others."""
    generate = recipes.by_name(recipe, {"method": "is-synth"}).generate
    assert (generate.scheduler, generate.steps) == ("DPMSolverMultistepScheduler", 20)
    assert (generate.strength, generate.guidance_scale) == (0.75, 8.0)
    assert (generate.fit, generate.shot_order) == ("pad", "random")
    assert recipes.by_name(recipe, {"method": "is-synth", "generate.guidance_scale": 3}).generate.guidance_scale == 3
    assert recipes.by_name(recipe).generate == ExperimentConfig().generate


def test_one_adapter_of_imagenet_takes_half_of_the_epochs():
    imagenet = {"data.dataset": "imagenet", "data.source": "sets"}
    for recipe in ("paper", "paper-code"):
        epochs = [
            recipes.by_name(recipe, changes).adapt.epochs
            for changes in (
                {"method": "datadream-dset"} | imagenet,
                {"method": "datadream-cls"} | imagenet,
                {"method": "datadream-dset"} | imagenet | {"data.dataset": "dtd"},
                {"method": "datadream-dset"} | imagenet | {"adapt.epochs": 3},
            )
        ]
        assert epochs == [100, 200, 200, 3]


def test_the_authors_prompts_say_what_a_known_data_set_shows():
    prompts = {name: recipes.paper_code(data={"dataset": name}).data.prompt for name in ("dtd", "cars", "imagenet")}
    assert prompts == {
        "dtd": "a texture photo of a {name}",
        "cars": "a car photo of a {name}",
        "imagenet": "a photo of a {name}",
    }
    assert recipes.paper(data={"dataset": "dtd"}).data.prompt == "a photo of a {name}"
    with pytest.raises(ValueError, match="data.dataset is 'dtf'"):
        recipes.paper_code(data={"dataset": "dtf"})
