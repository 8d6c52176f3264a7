"""What a run takes of its photos is told."""

from dataclasses import replace

from datadream.data.datasets import open_source
from datadream.data.few_shot import sample_shots
from datadream.data.intake import MOST_LINES, intake, intake_lines


def test_photos_are_accounted_for(photo_folder):
    (photo_folder / "cat" / "clip.mp4").touch()
    dataset = open_source(str(photo_folder)).dataset()
    told = intake(dataset, sample_shots(dataset, 2, 0, "a photo of a {name}"))
    assert told["classes"][0] == {
        "name": "cat",
        "prompt": "a photo of a cat",
        "found": 6,
        "shots": 2,
        "val": 2,
        "test": 1,
    }
    assert intake_lines(told) == [
        "photos: 3 classes, 2 shots each, 6 to validate and 3 to test",
        "  cat: 6 photos, prompted as 'a photo of a cat'",
        "  dog-2 legs: 6 photos, prompted as 'a photo of a dog-2 legs'",
        "  plain & <bold>: 6 photos, prompted as 'a photo of a plain & <bold>'",
        "  left out: 1 .mp4 files",
    ]


def test_classes_without_held_out_photos_are_told(photo_folder):
    dataset = open_source(str(photo_folder)).dataset()
    few_shot = sample_shots(dataset, 2, 0, "{name}")
    few_shot = replace(
        few_shot, val=tuple(photo for photo in few_shot.val if photo.label == 0), test=few_shot.test[1:]
    )
    assert intake_lines(intake(dataset, few_shot))[-2:] == [
        "  no validation photos of dog-2 legs and 1 more: those of the other classes choose nothing",
        "  no test photos of cat: those of the other classes are all that accuracy is of",
    ]
    none = intake(dataset, replace(few_shot, val=(), test=()))
    assert not [line for line in intake_lines(none) if line.startswith("  no ")]


def test_of_many_classes_some_are_listed():
    dataset = open_source("digits").dataset()
    told = intake(dataset, sample_shots(dataset, 1, 0, "{name}"))
    told["classes"] *= 3
    lines = intake_lines(told)
    assert len(lines) == MOST_LINES + 2
    assert lines[-1] == "  and 18 more classes, listed in intake.json"
