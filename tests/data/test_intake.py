"""What a run takes of its photos is told."""

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


def test_of_many_classes_some_are_listed():
    dataset = open_source("digits").dataset()
    told = intake(dataset, sample_shots(dataset, 1, 0, "{name}"))
    told["classes"] *= 3
    lines = intake_lines(told)
    assert len(lines) == MOST_LINES + 2
    assert lines[-1] == "  and 18 more classes, listed in intake.json"
