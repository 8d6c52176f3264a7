"""The Python drivers of jobs/: what a list of classes takes of a folder, and whole runs of both."""

import subprocess
import sys
from pathlib import Path

import pytest

from datadream.data.datasets import open_source
from datadream.experiment.experiment import Experiment
from datadream.run.layout import DATASET
from datadream.run.store import RunStore
from jobs.class_list import list_photos
from tests.experiment.test_extend import NEW, add_class, config_of

JOBS = Path(__file__).parents[2] / "jobs"


def test_a_list_of_classes_takes_their_photos_alone(photo_folder, tmp_path):
    classes = tmp_path / "mine.txt"
    classes.write_text("dog-2 legs\ncat\n\ncat\n")
    source = list_photos(classes, photo_folder)
    dataset = open_source(str(source)).dataset()
    assert dataset.class_names == ("cat", "dog-2 legs")
    assert len(dataset.pool) == 12
    classes.write_text("cat\ncow\n")
    with pytest.raises(ValueError, match=r"class 'cow' of .*mine.txt has no photos: expected some in"):
        list_photos(classes, photo_folder)


@pytest.mark.soak
def test_classes_are_added_by_a_driver(photo_folder, tmp_path):
    old, new = (RunStore(str(tmp_path / name)) for name in ("old", "new"))
    Experiment(config_of(photo_folder), old.url).run()
    add_class(photo_folder)
    ended = subprocess.run(
        [sys.executable, JOBS / "add_classes.py", old.url, new.url], check=True, capture_output=True, text=True
    )
    assert ended.stdout.splitlines()[0] == f"new: {NEW}"
    assert new.read_json(DATASET)["n_images"] == 16
