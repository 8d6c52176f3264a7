"""The facts about the known data sets agree with each other and with what knobs take."""

from pathlib import Path
from typing import get_args

import pytest

from datadream.config import KnownDataset, parse_config
from datadream.data.known import GUIDE, KNOWN


def test_each_name_that_data_dataset_takes_is_known():
    assert tuple(KNOWN) == get_args(KnownDataset)
    with pytest.raises(ValueError, match="data.dataset is 'flowers'.*Did you mean 'flowers102'"):
        parse_config({"data": {"dataset": "flowers"}})


@pytest.mark.parametrize("name", KNOWN)
def test_prompts_and_templates_are_taken_by_knobs(name):
    known = KNOWN[name]
    config = parse_config({"data": {"prompt": known.prompt}, "generate": {"prompts": known.templates}})
    assert config.data.prompt == known.prompt
    assert known.prompt.format(name="x") == " ".join(["a", *known.word.split(), "photo of a x"])


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.coop])
def test_coops_split_has_the_photos_of_the_official_one(name):
    official, coop = KNOWN[name].official_counts, KNOWN[name].coop.counts
    assert coop.classes == official.classes
    assert sum(coop[1:]) == sum(official[1:])
    if name in ("pets", "cars", "sun397"):  # there CoOp kept the official test part
        assert (coop.test, coop.train + coop.val) == (official.test, official.train)


@pytest.mark.parametrize("name", KNOWN)
def test_the_guide_has_the_same_figures(name):
    guide = (Path(__file__).parents[3] / GUIDE).read_text(encoding="utf-8")
    known = KNOWN[name]
    row = next(line for line in guide.splitlines() if line.startswith(f"| [`{name}`]({known.url})"))
    for counts in (known.official_counts, *([known.coop.counts] if known.coop else [])):
        assert f"{counts.train:,} + {counts.val:,} + {counts.test:,}" in row or f"none: {counts.train:,} in all" in row
