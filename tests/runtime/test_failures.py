"""A stage names what failed, all of it in a file, which goes when nothing fails any more."""

import pytest

from datadream.run.store import RunStore
from datadream.runtime.failures import check_none_failed


def test_the_message_names_a_few_and_the_file_all(tmp_path):
    store, failures = RunStore(str(tmp_path)), [f"unit {number}: broken" for number in range(12)]
    with pytest.raises(RuntimeError, match="12 of 20 units failed:\n  unit 0: broken\n") as failed:
        check_none_failed(store, "stages/failed.json", failures, "12 of 20 units")
    assert "unit 9" in str(failed.value)
    assert "unit 10" not in str(failed.value)
    assert str(failed.value).endswith(f"All are listed in {store.path('stages/failed.json')}.")
    assert store.read_json("stages/failed.json") == failures
    check_none_failed(store, "stages/failed.json", [], "none")
    assert not store.exists("stages/failed.json")
