"""What runs need is told from their configs alone, before there is a photo or a weight."""

from __future__ import annotations

import pytest

from datadream import recipes
from datadream.costs.constants import Cluster
from datadream.costs.needs import ASSUMED, Planned, needs

LAPTOP = Cluster(2)


def section(text: str, name: str) -> str:
    """The lines of one part."""
    lines = text.splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith(name)]
    ends = [number for number, line in enumerate(lines) if number > start and not line.startswith(" ")]
    return "\n".join(lines[start : ends[0] if ends else None])


def test_a_data_set_that_is_not_there_is_told_with_its_layout(tmp_path):
    config = recipes.by_name("digits/table1/datadream-cls").updated(
        {"data.dataset": "dtd", "data.source": str(tmp_path)}
    )
    told = section(needs([Planned(config)], LAPTOP), "photos")
    assert f"not in {tmp_path}. Unpack it there as dtd/ with images/, labels/; https://" in told
    (tmp_path / "dtd" / "images").mkdir(parents=True)
    assert f"in {tmp_path}/dtd" in section(needs([Planned(config)], LAPTOP), "photos")


def test_models_are_told_with_where_they_are(tmp_path):
    config = recipes.digits(**{"diffusion.model": str(tmp_path / "sd")})
    told = section(needs([Planned(config)], LAPTOP), "weights")
    assert f"{tmp_path}/sd: not there" in told
    assert "package://datadream.models.tiny/clip: in the package" in told
    assert "sd" not in section(needs([Planned(config.updated({"method": "none"}))], LAPTOP), "weights")
    clip = recipes.digits(**{"classify.model": "RN50-quickgelu", "classify.pretrained": "openai"})
    assert "RN50-quickgelu: weights openai, downloaded by open_clip" in needs([Planned(clip)], LAPTOP)


def test_runs_that_take_the_images_of_another_generate_none():
    config = recipes.digits()
    both = needs([Planned(config), Planned(config, takes_images=True)], LAPTOP)
    once = needs([Planned(config)], LAPTOP)
    line = {text: [part for part in text.splitlines() if " generate " in part] for text in (both, once)}
    assert line[both] == line[once] != []
    assert "2 runs on 2 CPU workers" in both


def test_stable_diffusion_is_planned_for_a_gpu_where_there_is_none(tmp_path):
    config = recipes.digits(**{"diffusion.model": str(tmp_path / "sd"), "diffusion.resolution": 512})
    assert f"1 run on {ASSUMED}" in needs([Planned(config)], LAPTOP)
    assert "1 run on 4 A100" in needs([Planned(config)], Cluster(4, "a100"))


@pytest.mark.parametrize("name", ["digits/table1/is-synth", "digits/table4/unet"])
def test_hours_and_disk_are_those_of_every_stage_together(name):
    told = section(needs([Planned(recipes.by_name(name))] * 3, LAPTOP), "work")
    figures = [line.split() for line in told.splitlines()[1:-1]]
    assert figures[-1][0] == "all"
    # Each is rounded to a tenth.
    assert sum(float(line[1]) for line in figures[:-1]) == pytest.approx(float(figures[-1][1]), abs=0.2)
