"""A run's folder takes images of one plan alone."""

import pytest

from datadream.run.layout import DATASET, GENERATE_PLAN
from datadream.run.plan_record import claim_run
from datadream.run.store import RunStore

OURS, OTHER = "0123456789" * 6, "abcdef" * 10


def test_a_folder_of_other_images_is_refused_before_anything_is_drawn(tmp_path):
    store = RunStore(str(tmp_path))
    claim_run(store, OURS)
    claim_run(store, OURS)
    assert store.read_json(GENERATE_PLAN) == {"plan": OURS}
    with pytest.raises(ValueError, match="chunks folder of other images .plan 01234567 there, abcdefab now"):
        claim_run(store, OTHER)


def test_a_published_dataset_of_other_images_is_refused(tmp_path):
    store = RunStore(str(tmp_path))
    store.write_json(DATASET, {"plan": OTHER})
    with pytest.raises(ValueError, match="holds a dataset folder of other images .plan abcdefab there, 01234567 now"):
        claim_run(store, OURS)
    assert len(store.fs.find(store.root)) == 1
