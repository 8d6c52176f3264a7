"""`python -m benchmarks.gpu` where there is no GPU: all figures are there, and no part takes another with it."""

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from benchmarks import gpu
from benchmarks.gpu_table import table

PARTS = [
    "adapt",
    "generate",
    "classify",
    "adapt_recorded",
    "generate_ahead",
    "attention",
    "roofline",
    "adapt_compiled",
    "generate_compiled",
]
"""Those that neither start Ray nor other tests."""
HERE = "benchmarks.tests.test_gpu"


def fails(job) -> Iterator[dict]:
    yield {"before": 1}
    raise ValueError("this part is broken")


def hangs(job) -> Iterator[dict]:
    yield {"before": 2}
    time.sleep(600)


def dies(job) -> Iterator[dict]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield {}


def works(job) -> Iterator[dict]:
    yield {"one": 1}
    yield {"two": 2}


def own_parts(*names: str) -> dict[str, gpu.Part]:
    return {name: gpu.Part(f"{HERE}:{name}", 1 if name == "hangs" else 100) for name in names}


def read(folder) -> dict:
    return json.loads((folder / gpu.RECORD).read_text())


def arms(figures: dict) -> Iterator[dict]:
    """All that were timed."""
    for own in figures.values():
        if isinstance(own, dict):
            yield from [own] if "ms" in own else arms(own)


@pytest.mark.slow
def test_every_part_has_its_figures_and_is_measured_once(tmp_path, capsys):
    command = ["--device", "cpu", "--shapes", "tiny", "--out", str(tmp_path), "--parts", *PARTS]
    assert gpu.main(command) == 0
    record = read(tmp_path)
    assert {name: part["error"] for name, part in record["parts"].items()} == dict.fromkeys(PARTS)
    figures = {name: part["figures"] for name, part in record["parts"].items()}
    assert figures["adapt"]["steps"].keys() == {"plain fp32", "plain bf16", "C=1", "C=2"}
    assert figures["generate"]["images"].keys() == {"authors", "kept", "exact", "fast", "turbo"}
    assert figures["generate"]["pixels"]["largest_difference"] <= 2
    for part in ("adapt_recorded", "adapt_compiled", "generate_compiled"):
        for pair in figures[part].values():
            assert pair.keys() == {"eager", part.partition("_")[2]}
    assert figures["generate_ahead"]["images"].keys() == {"waiting", "ahead"}
    assert figures["generate_ahead"]["same_images"]
    for loop in ("denoising", "adapter step"):
        assert {"default", "FLASH_ATTENTION"} <= figures["attention"][loop].keys()
        assert figures["attention"][f"{loop}, differences"]["FLASH_ATTENTION"] < 1e-2
    for n in (3, 6):
        own = figures["classify"][f"N={n}"]
        assert own["step"].keys() == own["evaluation"].keys()
        assert own["step"].keys() == {"plain fp32", "plain bf16", "ours fp32", "ours bf16"}
        assert own["check"]["hits"][0] == own["check"]["hits"][1]
    for loop in ("adapter step", "denoising", "classifier step"):
        own = figures["roofline"][loop]
        assert own["tflop"] > 0
        assert own["share_of_peak"] > 0
        assert len(own["kernels"]) == 10
    for part in figures.values():
        for arm in arms(part):
            # Beside other work a line through few and more steps may well fall below zero.
            assert arm["ms"] > 0 or len(arm["measured_steps"]) == 2
            assert {"gib", "first_call_s"} <= arm.keys()
    written = (tmp_path / gpu.RECORD).stat().st_mtime_ns
    assert gpu.main(command) == 0
    assert (tmp_path / gpu.RECORD).stat().st_mtime_ns == written
    assert "| C=2 |" in capsys.readouterr().out


@pytest.mark.slow
def test_a_part_that_fails_hangs_or_dies_is_recorded_and_the_others_go_on(tmp_path):
    parts = own_parts("fails", "hangs", "dies", "works")
    assert not gpu.run(tmp_path, "cpu", "tiny", parts, seconds=600)
    found = read(tmp_path)["parts"]
    assert found["fails"]["error"] == "ValueError: this part is broken"
    assert found["fails"]["figures"] == {"before": 1}
    assert found["hangs"]["error"] == "it took longer than 1 s"
    assert found["hangs"]["figures"] == {"before": 2}
    assert "signal 9" in found["dies"]["error"]
    assert found["works"] == {"seconds": found["works"]["seconds"], "error": None, "figures": {"one": 1, "two": 2}}
    assert "Not complete: ValueError: this part is broken" in table(read(tmp_path))


@pytest.mark.slow
def test_what_the_time_did_not_suffice_for_is_done_by_the_next_call(tmp_path):
    parts = own_parts("works", "fails")
    gpu.run(tmp_path, "cpu", "tiny", own_parts("works"), seconds=600)
    assert not gpu.run(tmp_path, "cpu", "tiny", parts, seconds=0)
    assert read(tmp_path)["parts"].keys() == {"works"}
    gpu.run(tmp_path, "cpu", "tiny", parts, seconds=600)
    assert read(tmp_path)["parts"].keys() == {"works", "fails"}


def test_figures_of_two_kinds_do_not_mix(tmp_path):
    machine = {"gpu": None, "cpu": "a CPU", "versions": {}}
    gpu.Record(tmp_path, "cpu", "tiny", machine).add("works", gpu.Measured({"one": 1}, None, 1.0))
    assert gpu.Record(tmp_path, "cpu", "tiny", machine).complete(["works"])
    for device, shapes, own in (
        ("cpu", "sd21", machine),
        ("cuda", "tiny", machine),
        ("cpu", "tiny", machine | {"cpu": "another CPU"}),
    ):
        with pytest.raises(ValueError, match=" is of .*, and this is .*Use another --out"):
            gpu.Record(tmp_path, device, shapes, own)
