"""Which classifier of a run is taken, by the figures that its settings have."""

import pytest

from datadream.run.choice import choose_setting
from datadream.run.layout import ClassifierMarker


def marker(val_top1: float | None, chosen_by: str | None, n_val: int = 40) -> ClassifierMarker:
    ten = [{"name": f"class {label}"} for label in range(10)]
    return ClassifierMarker(setting="", top1=None, val_top1=val_top1, chosen_by=chosen_by, n_val=n_val, per_class=ten)


def test_validation_photos_choose_whatever_was_trained_on():
    found = {"zero-shot": marker(70.0, None), "real": marker(92.5, "val"), "real+synthetic": marker(90.0, "val")}
    choice = choose_setting(found)
    assert (choice.settings, choice.reason) == (("real",), "best of 3 on 40 validation photos, 92.5 %")
    assert choose_setting(found | {"real+synthetic": marker(95.0, "val")}).settings == ("real+synthetic",)
    assert choose_setting(found | {"zero-shot": marker(97.5, None)}).settings == ("zero-shot",)


def test_of_equals_the_one_that_trained_on_more():
    found = {"real": marker(90.0, "val"), "real+synthetic": marker(90.0, "val"), "synthetic": marker(90.0, "val")}
    assert choose_setting(found).settings == ("real+synthetic",)


def test_folds_can_only_speak_against_generated_images():
    """Images have seen the shots that a fold leaves out."""
    shots = {"zero-shot": marker(None, None, 0), "synthetic": marker(100.0, "shots")}
    against = choose_setting(shots | {"real": marker(85.0, "folds"), "real+synthetic": marker(82.5, "folds")})
    assert against.settings == ("real",)
    assert against.reason == "85.0 % on shots left out, and 82.5 % with generated images"
    for_them = choose_setting(shots | {"real": marker(85.0, "folds"), "real+synthetic": marker(87.5, "folds")})
    assert for_them.settings == ("real", "real+synthetic")


def test_where_nothing_compares_them_photos_with_and_without_images_vote():
    nothing = {name: marker(None, None, 0) for name in ("real", "gda-real", "real+synthetic", "zero-shot")}
    assert choose_setting(nothing).settings == ("real", "real+synthetic")
    assert choose_setting(nothing).reason == "they vote: no validation photos compare them"
    on_test = {"real": marker(None, "test", 0), "real+synthetic": marker(None, "test", 0)}
    assert choose_setting(on_test | {"zero-shot": marker(70.0, None, 10)}).settings == ("real", "real+synthetic")


def test_of_one_photo_a_class_zero_shot_votes_where_it_knows_the_classes():
    """Its figure is of the shots then, of which no fold can be made."""
    trained = {"real": marker(None, None, 0), "real+synthetic": marker(None, None, 0)}
    knows, guesses = {"zero-shot": marker(40.0, None, 10)}, {"zero-shot": marker(30.0, None, 10)}
    choice = choose_setting(trained | knows)
    assert choice.settings == ("real", "real+synthetic", "zero-shot")
    assert choice.reason == (
        "they vote: no validation photos compare them, and zero-shot recognises 40.0 % of the shots"
    )
    assert choose_setting(trained | guesses).settings == ("real", "real+synthetic")
    assert choose_setting({"real": trained["real"]} | knows).settings == ("real", "zero-shot")
    assert choose_setting({"real": trained["real"]} | guesses).settings == ("real",)
    assert choose_setting(trained | {"zero-shot": marker(0.0, None, 10)}).settings == ("real", "real+synthetic")
    by_folds = {name: marker(50.0, "folds") for name in trained}
    assert choose_setting(by_folds | knows).settings == ("real", "real+synthetic")
    assert choose_setting({"gda-real": marker(None, None, 0)} | knows).settings == ("gda-real",)
    # A version that did not say what chose, and a setting that was added since.
    older = {"real": marker(50.0, None), "real+synthetic": marker(50.0, "val")}
    assert choose_setting(older | knows).settings == ("real", "real+synthetic")


def test_of_others_photos_alone_and_else_what_trained_on_the_most():
    nothing = {name: marker(None, None, 0) for name in ("real", "gda-real", "zero-shot")}
    assert choose_setting(nothing).settings == ("real",)
    assert choose_setting(nothing).reason == "of photos alone: no validation photos compare them"
    assert choose_setting(nothing | {"synthetic": marker(100.0, "shots")}).settings == ("real",)
    closed = {"gda-real": marker(60.0, "folds"), "gda-real+synthetic": marker(70.0, "folds")}
    assert choose_setting(closed).settings == ("gda-real",)
    images = {"zero-shot": marker(None, None, 0), "synthetic": marker(100.0, "shots")}
    assert choose_setting(images).settings == ("synthetic",)
    assert choose_setting(images).reason == "trained on the most, and no validation photos compare them"
    assert choose_setting({"zero-shot": marker(None, None, 0)}).reason == "the only one"


def test_markers_of_older_versions_do_not_say_what_chose():
    older = {
        name: ClassifierMarker.from_json({"setting": name, "top1": 50.0, "val_top1": val_top1})
        for name, val_top1 in (("real", 80.0), ("synthetic", 90.0))
    }
    assert choose_setting(older).settings == ("synthetic",)


def test_a_run_without_classifiers_has_none_to_choose():
    with pytest.raises(ValueError, match="no classifier"):
        choose_setting({})
