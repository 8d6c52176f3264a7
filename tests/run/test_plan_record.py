"""A run's folder takes images of one plan alone."""

import pytest

from datadream.run.layout import DATASET, GENERATE_PLAN
from datadream.run.plan_record import check_plan, record_plan
from datadream.run.store import RunStore

OURS, OTHER = "0123456789" * 6, "abcdef" * 10


@pytest.fixture
def store(tmp_path) -> RunStore:
    return RunStore(str(tmp_path))


def test_a_folder_of_other_images_is_refused_and_keeps_its_plan(store):
    check_plan(store, OURS)
    assert store.files("") == set()
    record_plan(store, OURS)
    check_plan(store, OURS)
    assert store.read_json(GENERATE_PLAN) == {"plan": OURS}
    with pytest.raises(ValueError, match="chunks folder of other images .plan 01234567 there, abcdefab now"):
        check_plan(store, OTHER)
    record_plan(store, OTHER)
    assert store.read_json(GENERATE_PLAN) == {"plan": OURS}


def test_a_published_dataset_of_other_images_is_refused(store):
    store.write_json(DATASET, {"plan": OTHER})
    with pytest.raises(ValueError, match="holds a dataset folder of other images .plan abcdefab there, 01234567 now"):
        check_plan(store, OURS)


def test_a_dataset_of_a_version_that_recorded_no_plan_is_taken(store):
    store.write_json(DATASET, {"n_images": 3})
    check_plan(store, OURS)
