"""The notebook's cells run on a run, whatever it lacks, and are stored without outputs."""

import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

NOTEBOOK = json.loads((Path(__file__).parents[2] / "jobs" / "look_at_a_run.ipynb").read_text())
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
RUN = 'RUN = "runs/demo"'


@pytest.mark.parametrize("top1", [{"zero-shot": 70.0, "real+synthetic": 93.5}, {"synthetic": None}])
@pytest.mark.parametrize("dataset", ["parquet", "webdataset"])
def test_every_cell_runs(make_run, top1, dataset, capsys):
    store, _ = make_run("run", top1, dataset=dataset)
    code = ["".join(cell["source"]) for cell in CELLS]
    assert RUN in code[0]
    with mpl.rc_context(), plt.ioff():
        mpl.use("Agg")
        names: dict = {}
        for source in code:
            exec(source.replace(RUN, f"RUN = {store.url!r}"), names)
        plt.close("all")
    said = capsys.readouterr().out
    assert "adapt     3/3 adapters" in said
    assert ("real+synthetic        93.5 %  [91.5, 95.5]" in said) == ("real+synthetic" in top1)
    assert ("taken for" in said) == ("real+synthetic" in top1)


def test_it_is_stored_without_outputs():
    assert not [cell for cell in CELLS if cell["outputs"] or cell["execution_count"] is not None]
