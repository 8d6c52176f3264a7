"""The JSON files of a run: what is written is read back, by earlier and later versions too."""

import json
from dataclasses import dataclass

import pytest

from datadream.run import layout
from datadream.run.layout import AdapterMarker, ClassifierMarker, DatasetMarker, Record, StageSeconds, TrialRecord


def as_read(record: Record) -> dict:
    """The file's content after a round trip through JSON."""
    return json.loads(json.dumps(record.to_json()))


def test_fields_are_written_in_their_order_and_read_back():
    marker = DatasetMarker(
        plan="ab", format="parquet", n_images=3, class_names=("cat", "dog"), shards=("0.parquet",), n_bytes=(7,)
    )
    written = as_read(marker)
    assert list(written) == ["plan", "format", "n_images", "class_names", "shards", "n_bytes"]
    assert as_read(DatasetMarker.from_json(written)) == written


def test_what_has_nothing_to_say_is_left_out_and_what_is_unknown_is_null():
    trial = TrialRecord(number=1, knobs={"learning_rate": 1e-3}, steps=5, val_top1=None)
    assert trial.to_json() == {"number": 1, "knobs": {"learning_rate": 1e-3}, "steps": 5, "val_top1": None}
    classifier = ClassifierMarker(setting="zero-shot", top1=None).to_json()
    assert classifier["val_top1"] is None
    assert not {"gaussian_weight", "search"} & classifier.keys()


def test_fields_of_a_later_version_are_passed_over_and_those_of_an_earlier_have_defaults():
    assert StageSeconds.from_json({"seconds": 3.5, "energy": 12}) == StageSeconds(seconds=3.5)
    found = ClassifierMarker.from_json({"setting": "real", "top1": 90.0})
    assert (found.n_test, found.intervals, found.search) == (0, {}, None)


def test_a_missing_field_is_named():
    with pytest.raises(ValueError, match="a AdapterMarker without 'adapter_id': the file was written by another"):
        AdapterMarker.from_json({})


def test_nested_records_dataclasses_and_tuples_become_plain():
    @dataclass(frozen=True)
    class Photo:
        key: str
        size: tuple[int, int]

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Nested(Record):
        inner: StageSeconds
        photos: tuple[Photo, ...]

    nested = Nested(inner=StageSeconds(seconds=1.0), photos=(Photo("a", (1, 2)),))
    assert nested.to_json() == {"inner": {"seconds": 1.0}, "photos": [{"key": "a", "size": [1, 2]}]}


def test_every_record_reads_what_it_writes():
    """A field that `from_json` needs and `to_json` leaves out would make a file that nobody can read."""
    for record in Record.__subclasses__():
        for field in record.__dataclass_fields__.values():
            assert "absent" not in field.metadata or field.default is None, (record, field.name)


def test_folders_of_the_contract_stay():
    """Runs of earlier versions, and people's scripts, look for these."""
    assert layout.adapter_weights("class-00003") == "adapters/class-00003/pytorch_lora_weights.safetensors"
    assert layout.adapter_marker("class-00003") == "adapters/class-00003/adapter.json"
    assert layout.classifier_marker("real") == "classifier/real/metrics.json"
    assert layout.stage_seconds("adapt") == "stages/adapt.json"
    assert layout.shard_file("data/0.parquet") == "dataset/data/0.parquet"
    assert layout.window_marker("0123456789abcdef0", 3) == "stages/publish/0123456789abcdef-00003.json"
    names = (layout.CONFIG, layout.FEW_SHOT, layout.METRICS, layout.PAGE, layout.DATASET, layout.LOCK)
    assert names == (
        "config.json",
        "few_shot.json",
        "metrics.json",
        "report/index.html",
        "dataset/dataset.json",
        "lock.json",
    )
