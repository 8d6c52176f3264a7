"""Bad input ends at once with one line that says what to do, exit code 2 and nothing written; what fails later, 1."""

import logging
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image
from ray.exceptions import ActorDiedError, RayTaskError

from datadream import __version__, recipes
from datadream.cli import main
from datadream.cli.parser import COMMON_KNOBS
from datadream.config import DataConfig
from datadream.data.datasets import DIGIT_NAMES
from datadream.experiment.experiment import Experiment
from datadream.run.cell import cells_of
from datadream.run.layout import CONFIG, DATASET, DatasetMarker, classifier_marker
from datadream.run.store import RunStore
from tests.images.test_analysis import publish
from tests.tiny_clip import save_tiny_clip

DIGITS = ["--recipe", "digits"]


def error_of(arguments: list[str], run, capsys) -> str:
    assert main(["run", "--run", str(run), *arguments]) == 2
    assert not run.exists()
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "digitz"], "unknown recipe 'digitz'. Did you mean 'digits'?"),
        ([*DIGITS, "method=datadream-clas"], "Did you mean 'datadream-cls'?"),
        ([*DIGITS, "adapt.rnak=4"], "unknown config key 'adapt.rnak'. Did you mean 'adapt.rank'?"),
        ([*DIGITS, "--adapt.rank", "none"], "adapt.rank is 'none'"),
        ([*DIGITS, "data.source=digist"], "data.source is 'digist': neither a known data set nor a folder"),
        ([*DIGITS, "data.n_shots=41"], "class 'digit zero' has 40 photos: data.n_shots asks for 41"),
        ([*DIGITS, "diffusion.model=/usr"], "'/usr' is no diffusers pipeline: it has no model_index.json"),
        ([*DIGITS, "cluster.workers=5000", "cluster.device=cpu"], "cluster.workers is 5000"),
        ([*DIGITS, "method=none"], "Use classify.settings='[zero-shot, gda-real, real]', or"),
        ([*DIGITS, "stray"], "unexpected 'stray': write knobs as key=value"),
        ([*DIGITS, "runs/other"], "unexpected 'runs/other': write knobs as key=value"),
        ([*DIGITS, "=8"], "unexpected '=8'"),
        ([*DIGITS, "rank=8"], "Did you mean 'adapt.rank'?"),
        ([*DIGITS, "adapt=8"], "adapt is 8, but it is a section of knobs. Set one of them, such as adapt.rank."),
        ([*DIGITS, "adapt.rank="], "adapt.rank has no value. Write adapt.rank=VALUE"),
        ([*DIGITS, "--adapt.rank"], "adapt.rank has no value"),
        ([*DIGITS, "--adapt.rank", "--seed", "3"], "adapt.rank has no value"),
        ([*DIGITS, "adapt.rank=null"], "adapt.rank is null: input should be a valid integer."),
        ([*DIGITS, "adapt.rank=[8"], "adapt.rank=[8 is not YAML: "),
        ([*DIGITS, "adapt.rank={a: 8}"], "adapt.rank takes one value."),
        ([*DIGITS, "grid.seeds=0,1"], "grid.seeds is '0,1': expected a list, such as [0,1]."),
        ([*DIGITS, "generate.guidance_interval=[0.1]"], "guidance_interval is [0.1]: the list has too few values."),
        (["--config", "nowhere.yaml"], "--config 'nowhere.yaml' cannot be read"),
        ([*DIGITS, "data.source=nosuch://bucket/x"], "data.source 'nosuch://bucket/x' cannot be reached: "),
        ([], "Add --recipe NAME or --config FILE.yaml"),
    ],
)
def test_bad_knobs(arguments, message, tmp_path, capsys):
    assert message in error_of(arguments, tmp_path / "run", capsys)


def test_bad_photos(photo_folder, tmp_path, capsys):
    arguments = [*DIGITS, f"data.source={photo_folder}"]
    run = tmp_path / "run"
    assert "class 'cat' has 6 photos: data.n_shots asks for 9" in error_of([*arguments, "data.n_shots=9"], run, capsys)
    (photo_folder / "cat" / "2.png").write_bytes(b"")
    assert "cat/2.png' is empty" in error_of(arguments, run, capsys)
    (photo_folder / "cat" / "2.png").write_bytes(b"GIF89a but not really")
    assert "cat/2.png' cannot be decoded" in error_of(arguments, run, capsys)
    (photo_folder / "cat" / "2.png").unlink()
    (photo_folder / "void").mkdir()
    assert "void' holds no image" in error_of(arguments, run, capsys)


def test_a_run_in_the_folder_of_the_photos_is_refused(photo_folder, capsys):
    arguments = ["--recipe", "laptop", f"data.source={photo_folder}", "data.n_shots=2"]
    message = error_of(arguments, photo_folder / "runs" / "one", capsys)
    assert "lies in data.source" in message
    assert "where it would be taken for a class of photos. Give --run a folder that is not in it." in message


def test_a_run_beside_the_photos_may_be_named_from_among_them(photo_folder, capsys, monkeypatch):
    monkeypatch.chdir(photo_folder)
    arguments = ["--recipe", "laptop", "--dry-run", "data.source=.", "data.n_shots=2"]
    assert main(["run", "--run", "../demo", *arguments]) == 0
    assert main(["run", "--run", "../photos/demo", *arguments]) == 2
    assert "would be taken for a class" in capsys.readouterr().err


def test_held_out_photos_must_be_others_and_be_there(photo_folder, tmp_path, capsys):
    arguments = [*DIGITS, f"data.source={photo_folder}"]
    run = tmp_path / "run"
    message = error_of([*arguments, "data.n_shots=6", "classify.select_on=test"], run, capsys)
    assert "classify.select_on is 'test', but there are no test photos" in message
    for path in (photo_folder / "cat").iterdir():
        path.write_bytes((photo_folder / "cat" / "0.png").read_bytes())
    message = error_of(arguments, run, capsys)
    assert "is a copy of the training photo 'cat/" in message


def test_a_broken_photo_that_no_shot_needs(photo_folder, tmp_path, capsys):
    root = tmp_path / "parts"
    root.mkdir()
    photo_folder.rename(root / "train")
    (root / "test" / "cat").mkdir(parents=True)
    Image.new("L", (30, 30)).save(root / "test" / "cat" / "x.webp")
    for path in (root / "train" / "cat").iterdir():
        data = path.read_bytes()
        path.write_bytes(b"")
        arguments = [*DIGITS, f"data.source={root}", "data.n_shots=1"]
        assert f"cat/{path.name}' is empty" in error_of(arguments, tmp_path / "run", capsys)
        path.write_bytes(data)


def test_unwritable_run(capsys):
    assert main(["run", "--run", "/proc/nowhere/run", *DIGITS]) == 2
    assert "run URL '/proc/nowhere/run' cannot be written" in capsys.readouterr().err


def test_yaml_file_then_overrides(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("adapt:\n  rank: 4\nmethod: datadream-dset\n")
    assert "Did you mean" in error_of([*DIGITS, "--config", str(file), "adapt.rankk=8"], tmp_path / "run", capsys)
    file.write_text("adapt: [\n")
    arguments, run = [*DIGITS, "--config", str(file)], tmp_path / "run"
    assert "is not YAML" in error_of(arguments, run, capsys)
    file.write_bytes(b"method: \xff")
    assert "is not YAML" in error_of(arguments, run, capsys)
    file.write_text("- method\n- seed\n")
    assert "holds no mapping of knobs: write lines such as 'method: datadream-dset'." in error_of(
        arguments, run, capsys
    )
    file.write_text("1: 2\n")
    assert "unknown config key '1'" in error_of(arguments, run, capsys)
    file.write_text("adapt:\n  # rank: 4\n")
    assert "adapt is null, but it is a section of knobs" in error_of(arguments, run, capsys)
    file.write_text("data:\n  prompt: {name}\n")
    message = error_of(arguments, run, capsys)
    assert "data.prompt is the mapping {'name': None}, but takes one value. In YAML, text with" in message
    file.write_text("data:\n  source: 2024\n")
    assert "data.source is 2024: expected text: quote it, as in '2024'." in error_of(arguments, run, capsys)
    for text in ("2024-05-01", "on"):
        file.write_text(f"data:\n  source: {text}\n")
        assert "expected text. YAML takes what was written there for something" in error_of(arguments, run, capsys)
    file.write_text("data:\n  source: photos\nadapt: {rank: 8}\ndata:\n  n_shots: 4\n")
    assert "'data' is there twice, first in line 1: join them" in error_of(arguments, run, capsys)
    file.write_text("data: {{name}: b}\n")
    assert "found unhashable key" in error_of(arguments, run, capsys)
    file.write_text("adapt: {rank: 8}\nadapt.rank: 4\n")
    assert "adapt.rank is there twice: 8 and 4. Leave one." in error_of(arguments, run, capsys)


def test_status_of_a_run_and_of_nothing(tmp_path, capsys):
    assert main(["status", "--run", str(tmp_path / "nowhere")]) == 2
    assert "holds no config.json" in capsys.readouterr().err
    assert main(["status", str(tmp_path / "new"), *DIGITS]) == 0
    assert capsys.readouterr().out.split()[:6] == ["adapt", "0/10", "adapters", "generate", "0/2000", "images"]


def test_recipes_help_and_knobs(capsys):
    assert main(["recipes"]) == 0
    assert "digits-table" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["run", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMON_KNOBS)
    assert "All knobs: datadream knobs" in text
    assert len(text.splitlines()) < 60
    assert main(["knobs"]) == 0
    assert "classify.augment.rotation = " in (every := capsys.readouterr().out)
    assert main(["knobs", "adapt"]) == 0
    group = capsys.readouterr().out
    assert "adapt.rank = 16\n    LoRA rank; alpha equals the rank (paper: 16)." in group
    assert group in every
    assert main(["knobs", "adpt"]) == 2
    assert "no knobs 'adpt'. Did you mean 'adapt'?" in capsys.readouterr().err


def test_photos_of_any_mode_are_accepted(photo_folder, tmp_path, capsys):
    Image.new("LA", (50, 40)).save(photo_folder / "cat" / "grey.png")
    assert main(["status", "--run", str(tmp_path / "run"), *DIGITS, f"data.source={photo_folder}"]) == 0


@pytest.mark.parametrize(
    "prompt", ["a: b: {name}", "a photo: {name}", "{name}", "{name} here", "a #1 {name}", "!x {name}"]
)
def test_a_prompt_that_yaml_reads_otherwise_is_to_be_quoted(prompt, tmp_path, capsys):
    message = error_of([*DIGITS, f"data.prompt={prompt}"], tmp_path / "run", capsys)
    assert message.startswith(f"datadream: data.prompt={prompt} ")
    assert message.endswith(f"""Quote it for YAML and the shell: data.prompt='"{prompt}"'.""")
    # As a shell hands it on.
    message = error_of([*DIGITS, f'data.prompt="{prompt}"', "adapt.rank=0"], tmp_path / "run", capsys)
    assert "adapt.rank is 0" in message


@pytest.mark.parametrize("text", ["2024", "0123456", "12:30", "on", "2024-01-01", "#set"])
def test_text_that_looks_like_a_number_stays_text(text, tmp_path, capsys):
    message = error_of([*DIGITS, f"data.source={text}"], tmp_path / "run", capsys)
    assert f"data.source is {text!r}: neither a known data set" in message


def test_a_command_without_a_run(capsys):
    for command, *rest in (["run", *DIGITS], ["status"], ["predict", "--top=3", "x.jpg"]):
        assert main([command, *rest]) == 2
        assert f"{command} needs a run's folder. Add --run FOLDER" in capsys.readouterr().err
        assert main([command, "--run", "", *rest]) == 2
        assert f"{command} needs a run's folder" in capsys.readouterr().err


def test_the_module_and_the_version_answer():
    command = [sys.executable, "-m", "datadream", "--version"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said == f"datadream {__version__}\n"


def test_a_command_under_nohup_outlives_its_terminal():
    code = "import signal; from datadream.cli import main; main(['recipes']); print(signal.getsignal(signal.SIGHUP))"
    command = ["nohup", sys.executable, "-c", code]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.splitlines()[-1] == str(signal.SIG_IGN)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_scheduler_ends_a_command_as_ctrl_c_does(number, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(Experiment, "check_inputs", lambda self: os.kill(os.getpid(), number))
    before = signal.signal(number, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        assert main(["run", "--run", str(tmp_path / "run"), *DIGITS]) == 130
        assert signal.getsignal(number) is signal.SIG_DFL
        assert logging.root.manager.disable == logging.NOTSET, "or a caller in Python is not heard any more"
    finally:
        signal.signal(number, before)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("datadream: interrupted. The same command goes on from here: ")


def test_an_interrupt_is_told_though_the_main_thread_does_not_listen():
    """`ray job stop` kills after 3 s; a handler in Python waits until the main thread comes back from C."""
    code = """if True:
        import hashlib, sys
        from datadream import cli
        def work():
            print("begun", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # half an hour without the GIL
        cli.prepare = lambda arguments, overrides: work
        sys.exit(cli.main(["recipes"]))
    """
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.terminate()
        assert process.stderr.readline().startswith("datadream: interrupted. The same command goes on from here: ")
        assert process.poll() is None, "or the main thread was not what spoke late"
        process.kill()


@pytest.mark.parametrize("ends_process", [True, False])
def test_nothing_is_said_after_an_interrupt_that_ends_the_process(ends_process):
    """Threads that wait for Ray, or write for a tracker, fail while it shuts down."""
    code = f"""if True:
        import os, signal, threading
        from datadream import cli
        cli.prepare = lambda arguments, overrides: lambda: os.kill(os.getpid(), signal.SIGTERM)
        assert cli.main(["recipes"], ends_process={ends_process}) == cli.INTERRUPTED
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    """
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stderr.splitlines()
    assert said[0].startswith("datadream: interrupted. The same command goes on from here: ")
    assert ("ZeroDivisionError: division by zero" in said) is not ends_process


def test_a_thread_that_is_late_does_not_start_ray_anew():
    """Ray does so for any call, after its shutdown as well."""
    code = """if True:
        from datadream import cli
        assert cli.main(["recipes"], ends_process=True) == 0
        import ray
        try:
            ray.put("late")
        except Exception as error:
            print(type(error).__name__)
    """
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.splitlines()[-1] == "RaySystemError"


@pytest.mark.parametrize("ends_process", [True, False])
def test_a_process_that_ends_looks_for_no_garbage(ends_process):
    """`ray job stop` kills after 3 s, and Python alone would take half of them."""
    code = f"""if True:
        import gc
        from datadream import cli
        assert cli.main(["recipes"], ends_process={ends_process}) == 0
        assert (gc.get_freeze_count() > 0) is {ends_process}
    """
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_config_of_another_version(tmp_path, capsys):
    config = {"data": DataConfig().model_dump(), "adapt": {"dropout": 0.1}}
    RunStore(str(tmp_path)).write_json(CONFIG, {"config": config})
    assert main(["status", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    expected = f"datadream: config.json of run '{tmp_path}' was written by another version: unknown config key"
    assert line.startswith(f"{expected} 'adapt.dropout'")
    assert line.endswith("with another --run.")


RESUMED = "What is committed is kept: the same command goes on from there: "


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("2 adapters failed"), "datadream: 2 adapters failed"),
        (ValueError("adapters are missing"), "datadream: adapters are missing"),
        (FileNotFoundError("a photo is gone"), "datadream: a photo is gone"),
        (RayTaskError("f", "ray::f() a long story", ValueError("a short one")), "datadream: a short one"),
        (RayTaskError("f", "", KeyError("x")), "datadream: unexpected KeyError: 'x' (--debug or DATADREAM_DEBUG=1"),
        (ActorDiedError(), "datadream: unexpected ActorDiedError: The actor died unexpectedly"),
        (KeyError("top1"), "datadream: unexpected KeyError: 'top1' (--debug or DATADREAM_DEBUG=1 shows"),
        (RuntimeError(), "datadream: unexpected RuntimeError:"),
    ],
)
def test_what_fails_after_the_checks_is_no_bad_input(error, line, tmp_path, capsys, monkeypatch):
    def fail(experiment: Experiment) -> None:
        raise error

    monkeypatch.setattr(Experiment, "adapt", fail)
    command = ["adapt", str(tmp_path / "run"), *DIGITS]
    assert main(command) == 1
    first, second = capsys.readouterr().err.strip().splitlines()
    assert first.startswith(line)
    assert second.startswith(RESUMED)
    assert main([*command, "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    monkeypatch.setenv("DATADREAM_DEBUG", "1")
    assert main(command) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_bug_in_the_checks_is_no_bad_input(tmp_path, capsys, monkeypatch):
    def fail(experiment: Experiment) -> None:
        raise AttributeError("no attribute")

    monkeypatch.setattr(Experiment, "check_inputs", fail)
    assert main(["adapt", str(tmp_path / "run"), *DIGITS]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("datadream: unexpected AttributeError: no attribute (--debug")


def test_an_interrupt_is_told_and_has_its_own_code(tmp_path, capfd, monkeypatch):
    def interrupt(experiment: Experiment) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Experiment, "adapt", interrupt)
    assert main(["adapt", str(tmp_path / "run"), *DIGITS]) == 130
    assert "The same command goes on from here: " in capfd.readouterr().err


def test_a_damaged_marker_is_no_bad_input(tmp_path, capsys):
    store = RunStore(str(tmp_path))
    store.write_bytes(classifier_marker("real"), b"{")
    assert main(["report", str(tmp_path), *DIGITS]) == 1
    assert RESUMED not in capsys.readouterr().err


def test_a_file_may_name_the_run_and_the_recipe_and_the_command_line_wins(tmp_path, capsys, monkeypatch):
    asked: list[Experiment] = []
    monkeypatch.setattr(Experiment, "check_inputs", lambda self: asked.append(self))
    monkeypatch.setattr(Experiment, "run", lambda self, until: [])
    file = tmp_path / "config.yaml"
    file.write_text(f"run: {tmp_path}/there\nrecipe: digits\ndata: {{n_shots: 2}}\n")
    command = ["run", "--config", str(file)]
    assert main(command) == 0
    assert main([*command, "--run", str(tmp_path / "here"), "--recipe", "paper", "adapt.rank=4"]) == 0
    assert [(e.store.name, e.config.data.source, e.config.data.n_shots, e.config.adapt.rank) for e in asked] == [
        ("there", "digits", 2, 16),
        ("here", "digits", 2, 4),
    ]
    assert [e.config.diffusion.resolution for e in asked] == [32, 512]
    file.write_text("run: 7\n")
    assert main(command) == 2
    assert "config.yaml' has run: 7, but expected text." in capsys.readouterr().err


def test_a_run_may_end_after_a_stage_without_a_report(tmp_path, capsys, monkeypatch):
    done: list[str | None] = []
    monkeypatch.setattr(Experiment, "check_inputs", lambda self: None)
    monkeypatch.setattr(Experiment, "run", lambda self, until: done.append(until) or [])
    for words in ([], ["--until", "adapt"]):
        assert main(["run", str(tmp_path / "run"), *words, *DIGITS]) == 0
    assert done == [None, "adapt"]
    with pytest.raises(SystemExit, match="2"):
        main(["run", str(tmp_path / "run"), "--until", "adaptt", *DIGITS])
    assert capsys.readouterr().out == ""


def test_images_says_what_is_missing(tmp_path, capsys):
    command = ["images", str(tmp_path / "run")]
    assert main(command) == 2
    assert "no run at" in capsys.readouterr().err
    assert main([*command, *DIGITS]) == 2
    assert "has no images to look at: dataset/dataset.json is missing. Run generate first." in capsys.readouterr().err
    names = [f"digit {name}" for name in DIGIT_NAMES]
    marker = DatasetMarker(format="parquet", n_images=0, class_names=names, shards=[])
    RunStore(str(tmp_path / "run")).write_json(DATASET, marker.to_json())
    assert main([*command, *DIGITS, "--model", "ViT-B-33"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("datadream: --model is 'ViT-B-33': no architecture of open_clip. Did you mean 'ViT-B-32'?")
    assert main([*command, *DIGITS, "--model", "ViT-B-32"]) == 2
    assert "--pretrained is unset, and 'ViT-B-32' is only an architecture." in capsys.readouterr().err
    assert main([*command, *DIGITS, "--pretrained", "openai"]) == 2
    assert "--pretrained is 'openai', but no --model is given." in capsys.readouterr().err


def test_images_prints_its_figures_and_shows_them_on_the_page(tmp_path, capsys):
    clip, run = f"local-dir:{save_tiny_clip(tmp_path / 'clip')}", tmp_path / "run"
    knobs = [*DIGITS, f"classify.model={clip}", "data.n_shots=1", "method=zero-shot"]
    (cell,) = cells_of(recipes.by_name("digits", {"data.n_shots": 1, "method": "zero-shot"}), RunStore(str(run)))
    publish(cell, [(label, Image.new("RGB", (32, 32), (label, 0, 9 * label))) for label in range(10)])
    assert main(["images", str(run), *knobs, "--against", "test"]) == 0
    printed = capsys.readouterr().out
    assert "10 images against 1,007 test photos" in printed
    assert printed.splitlines()[2].split()[:3] == ["method", "shots", "FID"]
    assert "Images against photos" in (run / "report" / "index.html").read_text()
