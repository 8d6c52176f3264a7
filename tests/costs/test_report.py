"""The plan and the dry run as people read them: nothing is written, and what no GPU has run is said to be modelled."""

import subprocess
import sys

import pytest

from datadream.cli import main
from datadream.costs.constants import gpu_named


def lines_of(capsys, command: str) -> list[str]:
    assert main(command.split()) == 0
    return capsys.readouterr().out.splitlines()


def row(lines: list[str], stage: str) -> str:
    return next(line for line in lines if line.startswith(f"{stage} "))


def test_a_cluster_that_is_not_there(capsys):
    lines = lines_of(capsys, "plan --recipe paper --classes 100 --gpus 64 --gpu H100 --price 2.5 data.n_shots=16")
    assert lines[0] == "datadream-cls: 100 classes, 16 shots and 500 images each, on 64 H100s:"
    assert "1,000 chunks" in row(lines, "generate")
    assert "17.9 GB" in row(lines, "generate")
    assert any("modelled; no GPU has run this" in line for line in lines)
    hours, cost = map(float, row(lines, "all").split()[1:3])
    assert cost == pytest.approx(hours * 64 * 2.5, rel=0.02)
    assert any(line.startswith("classify scales to 3 workers: one classifier after the other") for line in lines)


def test_what_was_measured_is_not_called_modelled(capsys):
    lines = lines_of(capsys, "plan --recipe digits cluster.workers=2 cluster.device=cpu")
    assert lines[0].endswith("on 2 CPU workers:")
    assert not any("modelled" in line for line in lines)
    assert "cost" not in lines[2]


def test_what_has_no_constant_is_named(capsys):
    knobs = "adapt.prior_weight=1 generate.select.label_top_k=1 generate.compile=true"
    lines = lines_of(capsys, f"plan --recipe paper --classes 2 --gpus 1 --gpu l4 {knobs}")
    named = [line for line in lines if line.startswith("not counted:")]
    assert [any(word in line for line in named) for word in ("prior", "filters", "compiling")] == [True] * 3
    assert len(named) == 3


def test_a_dry_run_says_what_is_taken_in_and_writes_nothing(tmp_path, capsys):
    run = tmp_path / "run"
    lines = lines_of(capsys, f"run --run {run} --recipe digits --dry-run cluster.device=cpu")
    assert lines[0].startswith("photos: 10 classes, 4 shots each")
    assert "10 adapters" in row(lines, "adapt")
    assert not run.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("plan", "nothing says what to plan. Add --recipe"),
        ("plan --recipe digits --gpus 3", "--gpus 3 of which kind? Add --gpu, such as --gpu h100."),
        ("plan --recipe digits --gpus 0 --gpu h100", "--gpus is 0: expected 1 or more."),
        ("plan --recipe digits --gpus 1 --gpu k80", "GPU 'k80' is none whose speed is known. Known: a10g, "),
        ("plan --recipe digits --gpu h100 cluster.device=cpu", "--gpu h100: there is none here. Say how many to plan"),
        ("plan --recipe digits adapt.rnak=4", "Did you mean 'adapt.rank'?"),
        ("plan --recipe digits stray", "unexpected 'stray': write knobs as key=value"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys):
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("A100-40G", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", "l40s"),
        ("L4", "l4"),
    ],
)
def test_gpus_are_known_by_what_drivers_and_ray_call_them(name, known):
    assert gpu_named(name) == known


def test_a_cluster_that_is_not_there_is_one_line():
    # Elsewhere, because a process that has joined a cluster plans for that one.
    command = [sys.executable, "-m", "datadream", "plan", "--recipe", "digits", "--address", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "cluster.address is '127.0.0.1:1', but no Ray answers there" in done.stderr
