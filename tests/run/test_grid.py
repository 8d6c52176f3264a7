"""A table has one run for each combination, and shares what needs no second run."""

from datadream.config import ExperimentConfig
from datadream.run.grid import table_cells


def test_every_combination_is_a_complete_run_and_baselines_are_shared():
    grid = {"grid.methods": ["zero-shot", "is-synth"], "grid.seeds": [1, 2], "grid.n_shots": [4]}
    cells = table_cells(ExperimentConfig().updated(grid | {"classify.settings": ["real", "synthetic"]}))
    assert [cell.name for cell in cells] == [
        f"{method}-k4-seed{seed}" for seed in (1, 2) for method in ("none", "zero-shot", "is-synth")
    ]
    for cell in cells:
        assert not cell.config.grid.on
        assert cell.name == f"{cell.config.method}-k{cell.config.data.n_shots}-seed{cell.config.seed}"
        assert cell.config.classify.settings == (("real",) if cell.config.method == "none" else ("synthetic",))


def test_a_curve_draws_its_largest_number_once():
    changes = {"grid.images_per_class": [5, 20], "method": "zero-shot", "classify.settings": ["synthetic"]}
    whole, part = table_cells(ExperimentConfig().updated(changes))
    assert (whole.config.generate.images_per_class, whole.drawn_by) == (20, None)
    assert (part.config.generate.images_per_class, part.drawn_by) == (5, whole.name)
