"""`ray job submit` against a real job server, on nodes that do not have the package: it does, says and ends as the
files of jobs/ promise, and goes on after `ray job stop`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobStatus

from datadream import recipes
from tests.jobs.job_server import JobServer, job_server
from tests.tiny_clip import save_tiny_clip

pytestmark = pytest.mark.timeout(900)

SMOKE = ("python", "jobs/run.py", "--config", "jobs/digits-smoke.yaml")
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
STAGES = ("adapt", "generate", "publish", "classify")
SIGNS = {"adapt": "adapters/*/adapter.json", "generate": "chunks/*.json", "classify": "classifier/*/checkpoints/*"}
"""What is there when a job is stopped in a stage."""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(home) -> Iterator[JobServer]:
    with job_server(home) as server:
        yield server


@pytest.fixture(scope="module")
def smoke(server) -> str:
    """The job that the README submits."""
    return server.submit(*SMOKE)


@pytest.mark.soak
def test_the_smoke_job_is_done_and_its_log_is_for_people(server, smoke, home):
    ended, log = server.wait(smoke), server.log(smoke)
    assert (ended.status, ended.driver_exit_code) == (JobStatus.SUCCEEDED, 0), log
    assert (home / "datadream-runs" / "digits-smoke" / "report" / "index.html").is_file()
    assert not re.search(r"[\r\x1b\x08]", log)
    lines = log.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("Running entrypoint")) + 1
    for stage in STAGES:
        (begun,) = [n for n, line in enumerate(lines) if re.match(rf"{STAMP} {stage}: begun, \d+/\d+ \w+", line)]
        (done,) = [n for n, line in enumerate(lines) if re.match(rf"{STAMP} {stage}: done, \d+ \w+ in \d+ ", line)]
        assert begun < done
    # Before the table all lines are of ours, with date and time, but for one of Ray's about its own log's level.
    table = next(number for number, line in enumerate(lines) if line.startswith("top-1 accuracy"))
    others = [line for line in lines[first:table] if not re.match(f"{STAMP} |  ", line)]
    assert [line for line in others if "RAY_BACKEND_LOG_LEVEL" not in line] == []
    assert len(others) <= 1


@pytest.mark.soak
def test_a_training_of_ones_own_reads_what_a_job_has_generated(server, smoke, home):
    server.wait(smoke)
    run = home / "datadream-runs" / "digits-smoke"
    job = server.submit("python", "jobs/own_training.py", str(run), "2")
    ended, log = server.wait(job), server.log(job)
    assert ended.driver_exit_code == 0, log
    (loss,) = re.findall(r"^loss (\d\.\d+) after 5 epochs", log, re.MULTILINE)
    assert float(loss) < 2.25, "ten classes guessed are 2.3"
    assert list(run.glob("own-training/*/model.pt"))


@pytest.mark.soak
def test_a_job_ships_the_package_and_its_entry_points_alone(server):
    code = "import os, datadream; print(sorted(os.listdir('.')), datadream.__file__.startswith(os.getcwd()))"
    job = server.submit("python", "-c", code)
    assert server.wait(job).driver_exit_code == 0
    assert server.log(job).splitlines()[-1] == "['datadream', 'jobs'] True"
    job = server.submit("python", "-m", "datadream", "--version")
    assert server.wait(job).driver_exit_code == 0


@pytest.mark.soak
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["adapt.rnk=8"], "unknown config key 'adapt.rnk'. Did you mean 'adapt.rank'?"),
        (["data.source=/nowhere/photos"], "data.source is '/nowhere/photos': neither a known data set nor a folder"),
        (["--run", "runs/mine"], "lies in the job's copy of the working directory"),
    ],
)
def test_bad_input_is_exit_code_2_and_one_line(server, words, said):
    job = server.submit(*SMOKE, *words)
    ended = server.wait(job)
    assert (ended.status, ended.driver_exit_code) == (JobStatus.FAILED, 2)
    (line,) = [line for line in server.log(job).splitlines() if line.startswith("datadream: ")]
    assert said in line


@pytest.mark.soak
def test_a_stage_that_fails_is_exit_code_1_with_the_failures_and_the_command(server, tmp_path):
    words = ["python", "jobs/adapt.py", *SMOKE[2:], "--run", str(tmp_path / "run"), "adapt.learning_rate=1e30"]
    job = server.submit(*words)
    ended, log = server.wait(job), server.log(job)
    assert (ended.status, ended.driver_exit_code) == (JobStatus.FAILED, 1), log
    assert "10 of 10 adapters failed" in log
    assert log.splitlines()[-1] == (
        f"What is committed is kept: the same command goes on from there: {' '.join(words)}"
    )


@pytest.fixture
def long_job(pipeline_folder, tmp_path) -> list[str]:
    """A run of all stages, long enough to be stopped in each, without its folder."""
    changes = {
        "diffusion.model": str(pipeline_folder),
        "data.n_shots": 2,
        "adapt.steps_per_class": 60,
        "adapt.batch_size": 2,
        "adapt.adapters_per_step": 1,
        "generate.images_per_class": 8,
        "generate.chunk_size": 2,
        "generate.steps": 30,
        "generate.images_per_shard": 25,
        "classify.model": f"local-dir:{save_tiny_clip(tmp_path / 'clip')}",
        "classify.settings": ["real+synthetic"],
        "classify.steps": 200,
        "cluster.workers": 2,
        "cluster.checkpoint_steps": 20,
        "cluster.device": "cpu",
    }
    (tmp_path / "config.yaml").write_text(recipes.digits(**changes).model_dump_json())  # JSON is YAML
    return ["python", "jobs/run.py", "--config", str(tmp_path / "config.yaml"), "--run"]


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param(["generate"], marks=pytest.mark.soak),
        pytest.param(["adapt", "generate", "classify"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_job_that_was_stopped_ends_with_the_bytes_of_one_that_was_not(stages, server, long_job, tmp_path):
    stopped, quiet = tmp_path / "stopped", tmp_path / "quiet"
    command = [*long_job, str(stopped)]
    for stage in stages:
        job = server.submit(*command)
        server.wait_until(lambda sign=SIGNS[stage]: any(stopped.glob(sign)), job)
        print(f"{stage}: stopped in {server.stop(job):.1f} s")
        lines = server.log(job).splitlines()
        assert lines[-1] == f"datadream: interrupted. The same command goes on from here: {' '.join(command)}"
        assert any(re.match(f"{STAMP} {stage}: begun, ", line) for line in lines)
    for run in (stopped, quiet):
        job = server.submit(*long_job, str(run))
        assert server.wait(job).driver_exit_code == 0, server.log(job)
    assert bytes_of(stopped) == bytes_of(quiet)
    assert not list(stopped.rglob(".*"))


def bytes_of(run: Path) -> dict[str, bytes]:
    """What must not depend on who was stopped."""
    kinds = ("adapters/*/*.safetensors", "chunks/*", "dataset/**/*", "classifier/*/*.safetensors", "metrics.json")
    return {
        str(path.relative_to(run)): path.read_bytes() for kind in kinds for path in run.glob(kind) if path.is_file()
    }
