"""Many runs by name: which they are, that all are checked before one starts, that one failure stops no other, and the
tables that are drawn of them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from datadream.cli import main
from datadream.data.few_shot import FewShotSet
from datadream.data.known import KNOWN
from datadream.experiment.experiment import Experiment
from datadream.experiment.suite import Suite
from datadream.models.source import resolve
from datadream.report.suite import CSV, MARKDOWN
from datadream.run.layout import DATASET, FEW_SHOT, METRICS, PAGE
from tests.data.known.unpacked import few_classes
from tests.report.fabricate import write_dataset, write_photos, write_setting
from tests.report.test_page import Page
from tests.tiny_clip import save_tiny_clip

SETS = ("caltech101", "eurosat")
ACCURACIES = {"zero-shot": 50.0, "real": 80.0, "synthetic": 70.0, "real+synthetic": 82.0}
ACCURACIES |= {f"gda-{name}": value for name, value in ACCURACIES.items()}


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """Two data sets of the paper as they are unpacked, but small."""
    monkeypatch.setitem(KNOWN, "caltech101", few_classes("caltech101", (3, 60, 0, 0)))
    monkeypatch.setitem(KNOWN, "eurosat", few_classes("eurosat", (2, 40, 0, 0)))
    sets = tmp_path / "sets"
    write_photos(sets / "caltech-101" / "101_ObjectCategories", ("Faces", "airplanes", "car_side"), n_shots=20)
    write_photos(sets / "eurosat" / "2750", ("AnnualCrop", "SeaLake"), n_shots=20)
    return sets


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Runs that were carried out, each as accurate as ACCURACIES says and a point more for each seed; with a prompt
    that says broken, is-synth fails."""
    done: list[str] = []

    def run(self: Experiment) -> None:
        if self.config.images_from is not None:
            self.check_inputs()
        if "broken" in self.config.data.prompt and self.config.method == "is-synth":
            raise RuntimeError("2 adapters failed:\n  cat: why\n  dog: why")
        done.append("/".join(self.store.root.split("/runs/")[1:]))
        for cell in self.cells:
            assert isinstance(cell.few_shot, FewShotSet)
            cell.store.write_json("config.json", {"config": cell.config.model_dump(mode="json"), "versions": {}})
            cell.store.write_json(FEW_SHOT, cell.few_shot.to_json())
            if cell.config.method != "none" and cell.config.images_from is None:
                write_dataset(cell.store, "webdataset", 3)
                marker = cell.store.read_json(DATASET) | {"class_names": cell.few_shot.class_names}
                cell.store.write_json(DATASET, marker)
            for setting in cell.config.classify.settings:
                write_setting(cell.store, setting, ACCURACIES[setting] + self.config.seed, ("a", "cat", "dog"))
        self.store.write_json("config.json", {"config": self.config.model_dump(mode="json"), "versions": {}})

    monkeypatch.setattr(Experiment, "run", run)
    return done


def no_models(**more: object) -> dict[str, object]:
    return {"diffusion.model": "package://datadream.models.tiny/diffusion", "data.n_shots": 4, **more}


def test_a_suite_is_every_row_and_seed_in_a_folder_of_its_name(tmp_path, trained):
    suite = Suite("digits/table1", str(tmp_path / "runs"), methods=["baselines", "datadream-cls"], seeds=[0, 3])
    text = suite.run()
    assert trained == [f"digits/table1/{row}/seed{seed}" for row in ("baselines", "datadream-cls") for seed in (0, 3)]
    assert "| real | baselines | 81.5 ± 2.1 |" in text
    assert "paper" not in text.lower()
    folder = tmp_path / "runs" / "digits" / "table1"
    assert (folder / MARKDOWN).read_text() == text + "\n"
    page = Page((folder / PAGE).read_text())
    assert "71.5" in page.words
    rows = list(csv.DictReader(io.StringIO((folder / CSV).read_text())))
    assert {row["seeds"] for row in rows} == {"2"}


def test_tables_of_runs_that_are_done_are_drawn_where_no_photos_are(tmp_path, photos, trained):
    def suite(source: str) -> Suite:
        changes = no_models(**{"data.source": source, "diffusion.model": str(tmp_path / "sd21")})
        return Suite(
            "paper/table1/eurosat", str(tmp_path / "runs"), methods=["datadream-cls"], seeds=[0], changes=changes
        )

    (tmp_path / "sd21").symlink_to(resolve("package://datadream.models.tiny/diffusion"))
    here = suite(str(photos))
    text = here.run()
    with pytest.raises(FileNotFoundError, match="EuroSAT .* not in"):
        suite(str(tmp_path / "elsewhere")).check()
    for run in here.runs:
        here.store.child(run.name).write_json(METRICS, [])
    (tmp_path / "sd21").unlink()
    photos.rename(tmp_path / "gone")
    assert suite(str(photos)).run() == text


def test_a_generator_that_is_gone_is_told_though_some_runs_are_done(tmp_path, photos, trained):
    changes = no_models(**{"data.source": str(photos), "diffusion.model": str(tmp_path / "sd21")})
    rows = ["datadream-cls", "is-synth"]
    suite = Suite("paper/table1/eurosat", str(tmp_path / "runs"), methods=rows, seeds=[0], changes=changes)
    (tmp_path / "sd21").symlink_to(resolve("package://datadream.models.tiny/diffusion"))
    done = Suite("paper/table1/eurosat", str(tmp_path / "runs"), methods=rows[:1], seeds=[0], changes=changes)
    done.run()
    for run in done.runs:
        suite.store.child(run.name).write_json(METRICS, [])
    (tmp_path / "sd21").unlink()
    with pytest.raises((ValueError, FileNotFoundError), match="is-synth/seed0: diffusion.model"):
        suite.check()


def test_ours_stand_beside_the_papers_with_the_difference_and_both_protocols(tmp_path, photos, trained):
    changes = no_models(**{"data.source": str(photos)})
    rows = ["baselines", "datadream-cls"]
    suite = Suite("paper/table1", str(tmp_path / "runs"), datasets=SETS, methods=rows, seeds=[0, 1], changes=changes)
    text = suite.run()
    assert len(trained) == 2 * 2 * 2
    assert "| synthetic | disef | – (paper 93.4 ± 1.0) | – (paper 69.2 ± 2.7) | – (paper 81.3) |" in text
    line = next(line for line in text.splitlines() if line.startswith("| synthetic | datadream-cls |"))
    assert "70.5 ± 0.7 (paper 96.4 ± 0.0; −25.9) | 70.5 ± 0.7 (paper 85.4 ± 2.9; −14.9)" in line
    assert line.endswith("70.5 (paper 90.9; −20.4) |")
    assert "Ours: package://datadream.models.tiny/diffusion and ViT-B-16-quickgelu, 4 photos per class" in text
    assert "keeps the epoch that is best on the test photos" in text
    assert "EuroSAT: the authors' code tests on the training split." in text
    rows = csv.DictReader(io.StringIO((tmp_path / "runs/paper/table1" / CSV).read_text()))
    (found,) = [
        row for row in rows if (row["dataset"], row["row"], row["trained_on"]) == ("eurosat", "baselines", "real")
    ]
    assert (found["mean"], found["paper"], found["paper_sd"]) == ("80.5", "93.5", "0.7")
    assert float(found["difference"]) == pytest.approx(-13.0)


def test_quoted_rows_have_the_papers_figures_alone(tmp_path, photos, trained):
    changes = no_models(**{"data.source": str(photos)})
    chosen = {"datasets": ["eurosat"], "methods": ["is-synth"], "seeds": [0]}
    text = Suite("paper/table2", str(tmp_path / "runs"), **chosen, changes=changes).run()
    assert "| real | vpt | – (paper 92.3) |" in text
    assert trained == ["paper/table1/eurosat/is-synth/seed0"]


def test_a_table_of_other_classifiers_takes_the_images_of_another(tmp_path, trained):
    suite = Suite("digits/tableB/gda", str(tmp_path / "runs"), methods=["datadream-cls"], seeds=[0])
    suite.run()
    assert trained == ["digits/table1/datadream-cls/seed0", "digits/tableB/gda/datadream-cls/seed0"]
    store = suite.store.child("digits/tableB/gda/datadream-cls/seed0")
    assert store.read_json("config.json")["config"]["images_from"].endswith("digits/table1/datadream-cls/seed0")
    assert not store.exists(DATASET)
    suite.check()  # also where they have begun


def test_one_failing_run_is_named_and_the_others_go_on(tmp_path, trained, capsys):
    words = [
        "suite",
        "digits/tableB/gda",
        "--run",
        str(tmp_path / "runs"),
        "--seeds",
        "0",
        "data.prompt=broken {name}",
    ]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "datadream: 2 of" in said
    assert "\n  digits/table1/is-synth/seed0: 2 adapters failed: cat: why\n" in said
    assert (
        "\n  digits/tableB/gda/is-synth/seed0: it takes the images of digits/table1/is-synth/seed0, which fail" in said
    )
    assert "the same command goes on from there" in said
    assert "digits/tableB/gda/datadream-dset/seed0" in trained
    assert (tmp_path / "runs/digits/tableB/gda" / PAGE).is_file()


def test_a_curve_has_a_column_for_every_point(tmp_path, trained):
    text = Suite("digits/fig5/images", str(tmp_path / "runs"), methods=["datadream-cls"], seeds=[0]).run()
    assert "| trained on | row | 10 images | 25 images | 50 images | 100 images | 200 images |" in text
    assert (tmp_path / "runs/digits/fig5/images" / PAGE).read_text().count("<svg") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which suite? Name a table, such as paper/table1"),
        (["paper/tabel1"], "unknown suite 'paper/tabel1'. Did you mean 'paper/table1'?"),
        (["paper/table1", "--datasets", "dtdd"], "paper/table1 has no data set 'dtdd'. Did you mean 'dtd'?"),
        (
            ["digits/table1", "--methods", "datadream"],
            "digits/table1 has no method 'datadream'. Did you mean 'datadream-",
        ),
        (["digits/table1", "--seeds", "0,x"], "--seeds is '0,x': expected whole numbers"),
        (["digits/table1", "seed=3"], "unexpected seed: a suite sets it for each run. Use --seeds."),
        (["digits/table1", "adapt.rnk=3"], "Did you mean 'adapt.rank'?"),
        (
            ["paper/table1", "--datasets", "dtd,pets"],
            "Describable Textures (DTD), Oxford-IIIT Pet not in 'data', where",
        ),
        (
            ["paper/table1", "data.dataset=dtd"],
            "unexpected data.dataset: a suite sets it for each run. Use --datasets.",
        ),
        (["digits/table1", "data.n_shots=41"], "digits/table1/is-synth/seed0: class 'digit zero' has 40 photos"),
    ],
)
def test_bad_input_is_one_line_before_any_run_starts(words, message, tmp_path, capsys, trained, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["suite", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not trained
    assert not list(tmp_path.iterdir())


def test_what_runs_need_is_told_without_photos(capsys):
    words = ["suite", "digits/tableB/gda", "--methods", "datadream-cls", "--seeds", "0", "--check"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert told.startswith("weights  package://datadream.models.tiny/diffusion: in the package\n")
    assert "2 runs on " in told


def test_a_file_may_say_all_of_a_suite(tmp_path, trained, capsys):
    file = tmp_path / "suite.yaml"
    file.write_text(
        f"suite: digits/table1\nrun: {tmp_path}/runs\nmethods: [baselines]\nseeds: 0\nadapt: {{rank: 4}}\n"
    )
    assert main(["suite", "--config", str(file)]) == 0
    assert trained == ["digits/table1/baselines/seed0"]
    assert capsys.readouterr().out.strip().endswith("runs/digits/table1/report/index.html")
    assert not (tmp_path / "runs" / METRICS).exists()


def test_a_knob_beside_a_file_is_no_suites_name(tmp_path, trained):
    file = tmp_path / "suite.yaml"
    file.write_text(f"suite: digits/table1\nrun: {tmp_path}/runs\nmethods: [baselines]\nseeds: 0\n")
    assert main(["suite", "--config", str(file), "adapt.rank=4"]) == 0
    assert trained == ["digits/table1/baselines/seed0"]


@pytest.mark.soak
def test_a_real_suite_is_done_once_and_shares_images_between_tables(local_ray, pipeline_folder, tmp_path):
    clip = save_tiny_clip(tmp_path / "clip")
    changes = {
        "diffusion.model": str(pipeline_folder),
        "data.n_shots": 2,
        "adapt.steps_per_class": 2,
        "adapt.batch_size": 2,
        "generate.images_per_class": 4,
        "generate.steps": 2,
        "classify.model": f"local-dir:{clip}",
        "classify.steps": 4,
        "classify.eval_every": 4,
        "cluster.workers": 2,
    }
    chosen = {"methods": ["datadream-cls"], "seeds": [0], "changes": changes}
    table1 = Suite("digits/table1", str(tmp_path / "runs"), **chosen)
    first = table1.run()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("chunks/*")}
    assert len(made) >= 10
    gda = Suite("digits/tableB/gda", str(tmp_path / "runs"), **chosen)
    assert "| gda-synthetic | datadream-cls |" in gda.run()
    assert table1.run() == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("chunks/*")} == made
