"""Plans: which adapters, which images, and seeds that nothing else shares."""

from collections import Counter
from dataclasses import astuple, replace
from itertools import chain, combinations, permutations
from operator import attrgetter

import pytest

from datadream import recipes
from datadream.data.datasets import open_source
from datadream.data.few_shot import sample_shots
from datadream.methods import METHODS, Plan
from datadream.methods.base import AdapterSpec, ImageRequest, ImageSeries
from datadream.methods.chunks import split_into_chunks
from datadream.methods.n_steps import n_steps
from datadream.run.layout import adapter_marker


@pytest.fixture(scope="module")
def few_shot():
    return sample_shots(open_source("digits").dataset(), 4, 0, "a photo of a {name}")


def plan(few_shot, method: str, **changes) -> Plan:
    return METHODS[method](few_shot, recipes.digits(method=method, **{"generate.images_per_class": 6} | changes))


def requests(made: Plan) -> list[ImageRequest]:
    return [request for series in made.images for request in series]


@pytest.mark.parametrize(
    "method", ["datadream-cls", "datadream-dset", "datadream-mix", "loft", "is-synth", "zero-shot"]
)
def test_every_class_gets_its_images_with_seeds_of_their_own(few_shot, method):
    images = requests(plan(few_shot, method))
    assert Counter(image.label for image in images) == dict.fromkeys(range(10), 6)
    assert len({image.seed for image in images}) == 60
    assert {image.prompt for image in images if image.label == 7} == {"a photo of a digit seven"}


def test_class_adapters_see_their_class_alone(few_shot):
    made = plan(few_shot, "datadream-cls")
    assert [tuple(photo.key for photo in spec.photos) for spec in made.adapters] == list(few_shot.shots)
    assert all(image.adapters == ((made.adapters[image.label].adapter_id, 1.0),) for image in requests(made))
    assert len({spec.seed for spec in made.adapters}) == 10


def test_dataset_adapter_sees_all(few_shot):
    made = plan(few_shot, "datadream-dset")
    (spec,) = made.adapters
    assert len(spec.photos) == 40
    assert spec.n_classes == 10
    assert {image.adapters for image in requests(made)} == {((spec.adapter_id, 1.0),)}


def test_a_mix_has_the_base_generators_images_and_the_adapters_in_turn(few_shot):
    """Each is the image that it is in a run of the one method."""
    mixed, adapted = plan(few_shot, "datadream-mix"), plan(few_shot, "datadream-cls")
    assert mixed.adapters == adapted.adapters
    by_place = {(image.label, image.index): image for image in requests(adapted)}
    by_place |= {
        (image.label, image.index): image for image in requests(plan(few_shot, "zero-shot")) if not image.index % 2
    }
    assert {(image.label, image.index): image for image in requests(mixed)} == by_place
    assert Counter(bool(image.adapters) for image in requests(mixed)) == {True: 30, False: 30}


def test_is_synth_starts_from_each_shot_of_the_class_in_turn(few_shot):
    made = plan(few_shot, "is-synth", **{"generate.strength": 0.5})
    assert made.adapters == ()
    of_three = [image.source_key for image in requests(made) if image.label == 3]
    assert of_three == [*few_shot.shots[3], *few_shot.shots[3][:2]]
    assert {image.strength for image in requests(made)} == {0.5}


def test_shots_at_random_are_all_drawn_and_tell_nothing_of_the_prompt(few_shot):
    prompts = ["a photo of a {name}", "a scan of a {name}"]
    random = {"generate.shot_order": "random", "generate.images_per_class": 400, "generate.prompts": prompts}
    drawn = [image for image in requests(plan(few_shot, "is-synth", **random)) if image.label == 3]
    counts = Counter((image.prompt, image.source_key) for image in drawn)
    assert {key for _, key in counts} == set(few_shot.shots[3])
    assert len(counts) == 2 * len(few_shot.shots[3])
    assert min(counts.values()) > 20  # 50 each on average
    in_turn = requests(plan(few_shot, "is-synth", **random | {"generate.shot_order": "in-turn"}))
    assert [image.seed for image in in_turn if image.label == 3] == [image.seed for image in drawn]


def test_loft_trains_an_adapter_for_each_photo_and_mixes_all_pairs_of_a_class(few_shot):
    made = plan(few_shot, "loft", **{"generate.images_per_class": 14})
    assert [spec.photos[0].key for spec in made.adapters] == [photo.key for photo in few_shot.photos]
    assert {(len(spec.photos), spec.n_classes) for spec in made.adapters} == {(1, 1)}
    assert len({spec.seed for spec in made.adapters}) == 40
    names = [f"class-00003-shot-0{number}" for number in range(4)]
    assert [spec.adapter_id for spec in made.adapters[12:16]] == names
    of_three = sorted((image for image in requests(made) if image.label == 3), key=lambda image: image.index)
    assert [image.index for image in of_three] == list(range(14))
    mixtures = [image.adapters for image in of_three]
    # Every pair once before any comes again; the order is the class's and the run's own.
    assert sorted(mixtures[:6]) == [((one, 0.5), (other, 0.5)) for one, other in combinations(names, 2)]
    assert mixtures[6:] == [*mixtures[:6], *mixtures[:2]]
    assert mixtures[:6] != sorted(mixtures[:6])
    orders = [[a[0][-1] + b[0][-1] for a, b in pairs_of(made, label)] for label in range(10)]
    assert len(set(map(tuple, orders))) > 1
    assert orders != [[a[0][-1] + b[0][-1] for a, b in pairs_of(plan(few_shot, "loft", seed=1), n)] for n in range(10)]


def pairs_of(made: Plan, label: int) -> list:
    images = sorted((image for image in requests(made) if image.label == label), key=lambda image: image.index)
    return [image.adapters for image in images[:6]]


def test_a_series_of_loft_has_one_mixture_and_a_smaller_run_is_the_beginning_of_a_larger(few_shot):
    small, large = (plan(few_shot, "loft", **{"generate.images_per_class": n}) for n in (8, 50))
    assert len(large.images) == 60
    assert {len(series) for series in large.images} == {8, 9}
    assert set(requests(small)) == {image for image in requests(large) if image.index < 8}


def test_filters_judge_candidates_of_every_mixture_before_any_further_one(few_shot):
    made = plan(few_shot, "loft", **{"generate.images_per_class": 12, "generate.select.label_top_k": 1})
    of_three = [series for series in made.images if series.label == 3]
    assert [len(series) for series in of_three] == [2] * 24
    assert [set(map(attrgetter("index"), chain(*of_three[start : start + 6]))) for start in (0, 6, 12, 18)] == [
        set(range(start, start + 12)) for start in (0, 12, 24, 36)
    ]
    assert len({series.adapters for series in of_three[:6]}) == len({series.adapters for series in of_three}) == 6


def test_loft_of_one_photo_has_its_adapter_whole():
    one = sample_shots(open_source("digits").dataset(), 1, 0, "a photo of a {name}")
    assert {image.adapters for image in requests(plan(one, "loft")) if image.label == 3} == {
        (("class-00003-shot-00", 1.0),)
    }


def test_the_recipe_of_loft_takes_600_steps_for_a_photo(few_shot):
    config = recipes.paper(method="loft")
    assert {n_steps(spec, config.adapt) for spec in METHODS["loft"](few_shot, config).adapters} == {600}


@pytest.fixture(scope="module")
def told(few_shot):
    """The shots with captions and descriptions."""
    captions = {photo.key: f"scan {photo.key}" for photo in few_shot.photos}
    descriptions = tuple((f"{name} by hand", f"a scanned {name}") for name in few_shot.class_names)
    return replace(few_shot, captions=captions, descriptions=descriptions)


def test_disef_meets_every_shot_with_every_others_caption_equally_often(told):
    made = plan(told, "disef", **{"generate.images_per_class": 24, "generate.strength": 0.5})
    assert made.adapters == ()
    shots, of_three = told.shots[3], [image for image in requests(made) if image.label == 3]
    pairs = Counter((image.source_key, image.prompt) for image in of_three)
    assert pairs == {(shot, f"scan {other}"): 2 for shot, other in permutations(shots, 2)}
    assert {image.strength for image in of_three} == {0.5}
    assert sorted(image.index for image in of_three) == list(range(24))
    first = sorted(of_three, key=attrgetter("index"))[:4]
    assert [(image.source_key, image.prompt) for image in first] == [
        (shots[1], f"scan {shots[0]}"),
        (shots[2], f"scan {shots[1]}"),
        (shots[3], f"scan {shots[2]}"),
        (shots[0], f"scan {shots[3]}"),
    ]
    noise = {image.seed for image in requests(plan(told, "is-synth", **{"generate.images_per_class": 24}))}
    assert {image.seed for image in of_three} < noise


def test_disef_with_its_filter_judges_all_captions_before_any_further_candidate(told):
    made = plan(told, "disef", **{"generate.images_per_class": 8, "generate.select.label_top_k": 1})
    of_three = [series for series in made.images if series.label == 3]
    assert [len(series) for series in of_three] == [2] * 16
    assert [series.prompts for series in of_three[:4]] == [(f"scan {shot}",) for shot in told.shots[3]]


def test_disef_of_one_photo_has_its_own_caption(told):
    one = replace(told, shots=tuple(shots[:1] for shots in told.shots))
    of_three = [image for image in requests(plan(one, "disef")) if image.label == 3]
    (shot,) = one.shots[3]
    assert {(image.source_key, image.prompt) for image in of_three} == {(shot, f"scan {shot}")}


def test_language_chooses_among_the_descriptions_of_a_class(told):
    made, plain = (plan(told, name, **{"generate.images_per_class": 30}) for name in ("language", "zero-shot"))
    for image, other in zip(requests(made), requests(plain), strict=True):
        texts = told.descriptions[image.label]
        assert image == replace(other, prompt=texts[image.seed % 2])
    assert len({image.prompt for image in requests(made)}) == 20


@pytest.mark.parametrize(("method", "knob"), [("disef", "data.captions"), ("language", "data.descriptions")])
def test_methods_say_which_texts_they_need(few_shot, method, knob):
    with pytest.raises(ValueError, match=f"method '{method}' generates from .* Set {knob} to a file"):
        plan(few_shot, method)


def test_zero_shot_and_none(few_shot):
    assert plan(few_shot, "zero-shot").adapters == ()
    assert {image.source_key for image in requests(plan(few_shot, "zero-shot"))} == {None}
    assert plan(few_shot, "none") == Plan()


def test_another_run_seed_changes_every_image(few_shot):
    first, second = (requests(plan(few_shot, "datadream-cls", seed=seed)) for seed in (0, 1))
    assert {image.seed for image in first}.isdisjoint(image.seed for image in second)


def test_images_of_an_adapter_that_is_not_trained_are_refused():
    spec = AdapterSpec("class-00000", (), 1, 0)
    with pytest.raises(ValueError, match="class 3 asks for adapter 'clas-00000'.*Did you mean 'class-00000'?"):
        Plan((spec,), (ImageSeries(3, ("a cat",), 2, 0, adapters=(("clas-00000", 1.0),)),))


def test_a_class_may_have_several_series_but_an_index_once():
    of_shots = [ImageSeries(3, (f"a cat, {n}",), 5, 0, first_index=5 * n, source_keys=(f"{n}.png",)) for n in range(3)]
    assert [request.index for request in requests(Plan(images=tuple(of_shots)))] == list(range(15))
    with pytest.raises(ValueError, match="two series of class 3 have an image 9. .*first_index=10 or above"):
        Plan(images=(*of_shots, ImageSeries(3, ("a cat",), 1, 0, first_index=9)))
    turns = [ImageSeries(3, ("a cat",), 5, 0, first_index=n, stride=3) for n in range(3)]
    assert sorted(request.index for request in requests(Plan(images=tuple(turns)))) == list(range(15))
    with pytest.raises(ValueError, match="have an image 12. .*first_index=13 or above"):
        Plan(images=(turns[0], ImageSeries(3, ("a cat",), 1, 0, first_index=12)))


def test_a_part_of_a_series_has_the_same_requests():
    series = ImageSeries(3, ("a cat",), 7, 11, first_index=4, source_keys=("a.png", "b.png", "c.png"), strength=0.5)
    whole = list(series)
    assert (len(series), [request.index for request in whole]) == (7, list(series.indices))
    assert list(series.values()) == [astuple(request) for request in whole]
    assert [request.source_key for request in whole[:4]] == ["b.png", "c.png", "a.png", "b.png"]
    assert list(series[2:5]) == whole[2:5]
    assert list(series[5:99][1:]) == whole[6:]
    assert (series[-1], list(series[3:3])) == (whole[-1], [])
    with pytest.raises(IndexError):
        series[7]
    strided = replace(series, stride=3)
    assert [request.index for request in strided] == [4, 7, 10, 13, 16, 19, 22]
    assert list(strided[2:5]) == list(strided)[2:5] == [replace(series, first_index=n)[0] for n in (10, 13, 16)]
    with pytest.raises(ValueError, match="has step 2"):
        series[::2]


@pytest.mark.parametrize("method", ["zero-shot", "is-synth", "datadream-cls", "datadream-dset", "loft"])
def test_the_seed_of_an_image_chooses_its_prompt_and_nothing_else(few_shot, method):
    templates = ["a photo of a {name}", "a drawing of a {name}", "{name}, blurred"]
    one, same, three = (
        plan(few_shot, method, **{"generate.prompts": each, "generate.images_per_class": 30})
        for each in ([], templates[:1], templates)
    )
    assert same == one
    assert three.adapters == one.adapters
    chosen = Counter(image.prompt for image in requests(three) if image.label == 7)
    assert set(chosen) == {template.format(name="digit seven") for template in templates}
    assert min(chosen.values()) > 1
    for image, plain in zip(requests(three), requests(one), strict=True):
        assert replace(image, prompt=plain.prompt) == plain


@pytest.mark.parametrize("method", sorted(METHODS))
def test_names_of_classes_are_in_no_path(told, method):
    names = tuple(f"../../evil/{label}" for label in range(10))
    made = plan(replace(told, class_names=names, prompts=names), method)
    chunks = split_into_chunks("run", made.images, 50)
    paths = [*(adapter_marker(spec.adapter_id) for spec in made.adapters), *(chunk.file for chunk in chunks)]
    assert not [path for path in paths if "evil" in path or ".." in path]
