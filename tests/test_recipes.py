"""The command that would make a run again, as others may see it."""

from __future__ import annotations

import shlex

import pytest

from datadream import recipes
from datadream.cli import _config, _dotted, _parser

CHANGES = [
    {},
    {"seed": 3, "data.prompt": "a 'close' photo: {name}", "diffusion.revision": "0123456"},
    {"data.source": "photos", "classify.search.learning_rates": [1e-4, 1e-5], "classify.pretrained": None},
    {"generate.preset": "fast", "adapt.text_encoder": False, "diffusion.revision": "on"},
]


@pytest.mark.parametrize("recipe", recipes.RECIPES)
@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: ",".join(changes) or "none")
def test_the_command_of_a_config_gives_that_config(recipe, changes):
    config = recipes.by_name(recipe).updated(changes)
    words = shlex.split(recipes.command(config))
    arguments, overrides = _parser().parse_known_args([*words[1:], "--run", "new"])
    assert _config(arguments, _dotted(overrides, "new")) == config
    assert changes or words == ["datadream", "run", "--recipe", recipe]


def test_the_command_tells_neither_users_nor_hosts():
    private = {"data.source": "sftp://alice:s3cret@host.example/home/alice/photos", "cluster.address": "ray://host:1"}
    assert recipes.command(recipes.digits().updated(private)) == ("datadream run --recipe digits data.source=photos")
