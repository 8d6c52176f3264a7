"""The card's header is what the Hub reads."""

import pytest
from huggingface_hub import DatasetCard

from datadream import recipes
from datadream.data.card import dataset_card
from datadream.data.datasets import open_source
from datadream.data.few_shot import sample_shots


@pytest.mark.parametrize("dataset_format", ["parquet", "webdataset"])
def test_the_hub_reads_the_card(dataset_format):
    config = recipes.digits(**{"generate.dataset_format": dataset_format})
    few_shot = sample_shots(open_source("digits").dataset(), 4, 0, config.data.prompt)
    card = DatasetCard(dataset_card(few_shot, config, 2000, 123))
    assert card.data.license == "other"
    assert card.data.size_categories == ["1K<n<10K"]
    path = {"parquet": "data/train-*", "webdataset": "data/*.tar"}[dataset_format]
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": path}]
    assert f"| base model | `{config.diffusion.model}`, whose licence covers these images |" in card.text
    assert ("`provenance` says how" in card.text) == (dataset_format == "parquet")
    if dataset_format == "parquet":
        info = card.data.dataset_info
        assert info["splits"] == [{"name": "train", "num_bytes": 123, "num_examples": 2000}]
        assert info["features"][1]["dtype"]["class_label"]["names"]["7"] == "digit seven"


@pytest.mark.parametrize(
    ("method", "prompt"),
    [
        ("datadream-cls", "a photo of a {name}"),
        ("language", "descriptions of the classes"),
        ("disef", "captions of the photos"),
        ("plans.py:two_prompts", "each image's own, which its provenance names"),
    ],
)
def test_the_prompt_is_that_of_the_method(method, prompt):
    config = recipes.digits(method=method, **{"data.prompt": "a photo of a {name}"})
    few_shot = sample_shots(open_source("digits").dataset(), 1, 0, config.data.prompt)
    assert f"| prompt | {prompt} |" in dataset_card(few_shot, config, 10, 1)


def test_the_card_tells_neither_user_nor_host():
    private = {
        "data.source": "sftp://alice:s3cret@host.example/home/alice/photos",
        "diffusion.model": "/home/alice/models/sd",
    }
    config = recipes.digits(**private)
    few_shot = sample_shots(open_source("digits").dataset(), 4, 0, config.data.prompt)
    card = dataset_card(few_shot, config, 2000, 123)
    assert "real photos per class of `photos`" in card
    assert "| base model | `sd`, whose" in card
    assert not [word for word in ("alice", "s3cret", "host.example", "/home") if word in card]
