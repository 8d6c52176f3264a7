"""What the photos are and how classes are prompted is refused where it is written."""

import pytest

from datadream.config import ExperimentConfig, parse_config
from datadream.data.datasets import open_source
from datadream.data.few_shot import sample_shots


@pytest.mark.parametrize(
    "prompt", ["a photo", "a {x}", "a {}", "a {0}", "a {name", "a name}", "{name} of {x}", "{name:d}"]
)
def test_a_prompt_that_cannot_name_the_class_is_refused(prompt):
    with pytest.raises(
        ValueError, match="expected {name} where the name of the class goes.*'a photo of a {name}'.$"
    ) as told:
        ExperimentConfig().updated({"data.prompt": prompt})
    assert str(told.value).startswith(f"data.prompt is {prompt!r}: ")


@pytest.mark.parametrize("prompt", [{"a photo": "{name}"}, None, 7, ["a {name}"]])
def test_a_prompt_is_text(prompt):
    with pytest.raises(ValueError, match="data.prompt is .*: expected text. In YAML, quote a prompt that has a colon"):
        parse_config({"data": {"prompt": prompt}})


@pytest.mark.parametrize(
    ("prompt", "of_three"),
    [
        ("{name}", "digit three"),
        ("a photo: {name!s}, {name}", "a photo: digit three, digit three"),
        ("{{a}} {name}", "{a} digit three"),
    ],
)
def test_a_prompt_names_the_class(prompt, of_three):
    config = parse_config({"data": {"prompt": prompt}})
    assert sample_shots(open_source("digits").dataset(), 1, 0, config.data.prompt).prompts[3] == of_three


@pytest.mark.parametrize("color", ["withe", "", "#12", "#00000080", "rgba(0, 0, 0, 0)"])
def test_a_background_is_a_colour_that_hides(color):
    with pytest.raises(ValueError, match="data.background is '.*': expected a colour that hides what is behind it"):
        parse_config({"data": {"background": color}})
    assert parse_config({"data": {"background": "#808080"}}).data.background == "#808080"


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a {name}", "a photo"], "generate.prompts is 'a photo': expected {name} where the name of the class goes"),
        (["a {name} {x}"], "generate.prompts is 'a {name} {x}': expected {name}"),
        ("a {name}", "generate.prompts is 'a {name}': expected a list, such as"),
        (["a {name}", "a {name}"], "generate.prompts is .*: a template is listed twice"),
    ],
)
def test_each_template_names_the_class(prompts, message):
    with pytest.raises(ValueError, match=message):
        parse_config({"generate": {"prompts": prompts}})


@pytest.mark.parametrize("folder", ["/photos/seed0", "../seed0", "s3://bucket/seed0", ""])
def test_given_shots_are_inside_the_source(folder):
    with pytest.raises(ValueError, match="data.shots is '.*': expected a folder inside data.source, such as"):
        parse_config({"data": {"dataset": "pets", "shots": folder}})
    assert parse_config({"data": {"dataset": "pets", "shots": "seed0/"}}).data.shots == "seed0"


def test_given_shots_are_of_a_known_data_set():
    with pytest.raises(ValueError, match="data: shots is 'seed0', but dataset .*. Set data.dataset"):
        parse_config({"data": {"shots": "seed0"}})


def test_captions_come_from_one_place():
    with pytest.raises(ValueError, match="data: captions come from a file or from captioner: set one of them"):
        ExperimentConfig().updated({"data.captions": "captions.csv", "data.captioner": "Salesforce/blip-image"})
