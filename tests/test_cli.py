"""Bad input ends at once with one line that says what to do, exit code 2 and nothing written."""

import pytest
from PIL import Image

from datadream.cli import main

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
        ([*DIGITS, "method=none"], "method 'none' draws no images, but classify.settings has 'synthetic'"),
        ([*DIGITS, "stray"], "unexpected 'stray': write knobs as key=value"),
        (["--config", "nowhere.yaml"], "--config 'nowhere.yaml' cannot be read"),
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


def test_held_out_photos_must_be_others_and_be_there(photo_folder, tmp_path, capsys):
    arguments = [*DIGITS, f"data.source={photo_folder}"]
    run = tmp_path / "run"
    message = error_of([*arguments, "data.n_shots=6", "classify.select_on=test"], run, capsys)
    assert "classify.select_on is 'test', but there are no test photos" in message
    for path in (photo_folder / "cat").iterdir():
        path.write_bytes((photo_folder / "cat" / "0.png").read_bytes())
    message = error_of(arguments, run, capsys)
    assert "is a copy of the training photo 'cat/" in message


def test_a_broken_photo_that_the_draw_passes_over(photo_folder, tmp_path, capsys):
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
    assert "is not YAML" in error_of([*DIGITS, "--config", str(file)], tmp_path / "run", capsys)


def test_status_of_a_run_and_of_nothing(tmp_path, capsys):
    assert main(["status", "--run", str(tmp_path / "nowhere")]) == 2
    assert "holds no config.json" in capsys.readouterr().err
    assert main(["status", str(tmp_path / "new"), *DIGITS]) == 0
    assert capsys.readouterr().out.split()[:6] == ["adapt", "0/10", "adapters", "generate", "0/2000", "images"]


def test_recipes_and_help_name_every_knob(capsys):
    assert main(["recipes"]) == 0
    assert "digits-table" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["run", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "classify.augment.rotation" in text
    assert "LoRA rank; alpha equals the rank (paper: 16)." in text


def test_photos_of_any_mode_are_accepted(photo_folder, tmp_path, capsys):
    Image.new("LA", (50, 40)).save(photo_folder / "cat" / "grey.png")
    assert main(["status", "--run", str(tmp_path / "run"), *DIGITS, f"data.source={photo_folder}"]) == 0
