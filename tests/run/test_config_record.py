"""A folder belongs to one config."""

from contextlib import nullcontext

import pytest

from datadream import recipes
from datadream.config import ExperimentConfig
from datadream.run.config_record import check_config, record_config, recorded_config
from datadream.run.layout import CONFIG


def test_another_config_is_refused_by_key(store):
    config = recipes.digits()
    record_config(store, config)
    check_config(store, config.updated({"cluster.workers": 1}))
    with pytest.raises(ValueError, match=r"adapt.rank \(16 there, 4 now\); seed \(0 there, 7 now\)|seed.*adapt.rank"):
        check_config(store, config.updated({"adapt.rank": 4, "seed": 7}))


@pytest.mark.parametrize(("recipe", "refused"), [(recipes.digits, False), (ExperimentConfig, True)])
def test_a_run_that_does_not_say_was_made_without_lora_dropout(store, recipe, refused):
    """Versions before it knew no such knob."""
    config = recipe()
    older = config.model_dump(mode="json")
    del older["classify"]["lora_dropout"]
    store.write_json(CONFIG, {"config": older})
    assert recorded_config(store) == config.updated({"classify.lora_dropout": 0.0})
    with (
        pytest.raises(ValueError, match=r"classify.lora_dropout \(0.0 there, 0.1 now\)") if refused else nullcontext()
    ):
        check_config(store, config)
