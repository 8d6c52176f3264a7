"""Rows of the papers' tables as recipes, and which runs the papers' figures stand beside."""

from __future__ import annotations

import shlex

import pytest

from datadream import recipes
from datadream.paper.reproductions import published, reproductions


def test_a_row_of_a_table_is_a_recipe_with_the_papers_knobs():
    config = recipes.by_name("paper/table1/dtd/datadream-cls")
    assert (config.method, config.data.n_shots, config.generate.images_per_class) == ("datadream-cls", 16, 500)
    assert config.classify.settings == ("synthetic", "real+synthetic")
    assert recipes.by_name("paper/table1/imagenet/datadream-dset").adapt.epochs == 100
    assert not recipes.by_name("paper/table4/aircraft/unet").adapt.text_encoder
    assert recipes.by_name("paper/tableB/rn50/cars/is-synth").classify.image_tower == "full"
    # Trained once for both.
    assert recipes.by_name("paper/table2/dtd/is-synth") == recipes.by_name("paper/table1/dtd/is-synth")


def test_every_row_of_every_table_gives_a_config_that_its_own_name_makes_again():
    for name, each in reproductions().items():
        words = shlex.split(recipes.command(recipes.by_name(name)))
        assert len(words) == 4, name
        assert recipes.by_name(words[3]) == recipes.by_name(each.run)


def test_an_unknown_row_is_told_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'paper/table1/dtd/is-synth'"):
        recipes.by_name("paper/table1/dtd/is-synht")


def test_what_the_papers_report_belongs_to_runs_like_theirs_alone():
    config = recipes.by_name("paper/table1/dtd/datadream-cls")
    synthetic = ("datadream-cls", "synthetic", 16, 500)
    assert str(published([config])[synthetic]["DataDream, table 1"]) == "68.6 ± 2.0"
    with_baselines = config.updated({"classify.settings": ["zero-shot", "synthetic"]})
    assert str(published([with_baselines])["none", "zero-shot", 16, 0]["DataDream, table 1"]) == "46.1"
    for changes in ({"data.n_shots": 8}, {"adapt.text_encoder": False}, {"classify.model": "ViT-B-32"}):
        assert not published([config.updated(changes)])
    unet = published([recipes.by_name("paper/table4/aircraft/unet")])
    assert {source for figures in unet.values() for source in figures} == {"DataDream, table 4"}
    assert not published([recipes.digits()])


def test_the_listing_has_the_papers_figures():
    assert "paper/table1/<set>/<row>" in recipes.listing()
    lines = recipes.listing("paper/table4").splitlines()
    assert lines[0].split() == [
        "paper/table4/aircraft/unet-preservation",
        "synthetic",
        "19.96,",
        "real+synthetic",
        "62.49",
    ]
    assert "keeps the epoch that is best on the test photos" in lines[-1]
    with pytest.raises(ValueError, match="unknown recipe 'paper/table9'"):
        recipes.listing("paper/table9")
