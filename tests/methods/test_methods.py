"""Plans: which adapters, which images, and seeds that nothing else shares."""

from collections import Counter

import pytest

from datadream import recipes
from datadream.data.datasets import open_source
from datadream.data.few_shot import draw
from datadream.methods import METHODS, Plan
from datadream.methods.base import AdapterSpec, ImageRequest


@pytest.fixture(scope="module")
def few_shot():
    return draw(open_source("digits").dataset(), 4, 0, "a photo of a {name}")


def plan(few_shot, method: str, **changes) -> Plan:
    return METHODS[method](few_shot, recipes.digits(method=method, **{"generate.images_per_class": 6} | changes))


@pytest.mark.parametrize("method", ["datadream-cls", "datadream-dset", "is-synth", "zero-shot"])
def test_every_class_gets_its_images_with_seeds_of_their_own(few_shot, method):
    images = plan(few_shot, method).images
    assert Counter(image.label for image in images) == dict.fromkeys(range(10), 6)
    assert len({image.seed for image in images}) == 60
    assert {image.prompt for image in images if image.label == 7} == {"a photo of a digit seven"}


def test_class_adapters_see_their_class_alone(few_shot):
    made = plan(few_shot, "datadream-cls")
    assert [tuple(photo.key for photo in spec.photos) for spec in made.adapters] == list(few_shot.shots)
    assert all(image.adapters == ((made.adapters[image.label].adapter_id, 1.0),) for image in made.images)
    assert len({spec.seed for spec in made.adapters}) == 10


def test_dataset_adapter_sees_all(few_shot):
    made = plan(few_shot, "datadream-dset")
    (spec,) = made.adapters
    assert len(spec.photos) == 40
    assert spec.n_classes == 10
    assert {image.adapters for image in made.images} == {((spec.adapter_id, 1.0),)}


def test_is_synth_starts_from_each_shot_of_the_class_in_turn(few_shot):
    made = plan(few_shot, "is-synth", **{"generate.strength": 0.5})
    assert made.adapters == ()
    of_three = [image.source_key for image in made.images if image.label == 3]
    assert of_three == [*few_shot.shots[3], *few_shot.shots[3][:2]]
    assert {image.strength for image in made.images} == {0.5}


def test_zero_shot_and_none(few_shot):
    assert plan(few_shot, "zero-shot").adapters == ()
    assert {image.source_key for image in plan(few_shot, "zero-shot").images} == {None}
    assert plan(few_shot, "none") == Plan()


def test_another_run_seed_changes_every_image(few_shot):
    first, second = (plan(few_shot, "datadream-cls", seed=seed) for seed in (0, 1))
    assert {image.seed for image in first.images}.isdisjoint(image.seed for image in second.images)


def test_an_image_of_an_adapter_that_is_not_trained_is_refused():
    spec = AdapterSpec("class-00000", (), 1, 0)
    with pytest.raises(ValueError, match="class 3 asks for adapter 'clas-00000'.*Did you mean 'class-00000'?"):
        Plan((spec,), (ImageRequest(3, 2, "a cat", 0, (("clas-00000", 1.0),)),))
