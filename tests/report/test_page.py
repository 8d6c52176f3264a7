"""The page as a reader meets it: complete in one file, with the run's own figures and pictures."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from datadream.report import write_report
from datadream.report.tables import stage_rows
from datadream.run.layout import StageSeconds, stage_seconds
from datadream.run.store import RunStore
from tests.report.fabricate import (
    CLASS_NAMES,
    write_adapters,
    write_dataset,
    write_few_shot,
    write_logits,
    write_samples,
    write_selection,
    write_setting,
    write_stage_seconds,
)

ACCURACIES = {"zero-shot": 57.4, "real": 86.8, "synthetic": 85.1, "real+synthetic": 87.9}
VOID_TAGS = {"meta", "img", "br", "path", "use", "rect"}


class Page(HTMLParser):
    """Tags, text and links of a page; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "xlink:href")]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in VOID_TAGS:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def read_page(store: RunStore) -> tuple[str, Page]:
    html = store.read_bytes("report/index.html").decode()
    return html, Page(html)


@pytest.fixture
def table(make_run, tmp_path):
    """Two methods at two numbers of shots over three seeds; the baselines are in every cell."""
    cells = []
    for method, bonus in {"is-synth": 0.0, "datadream-cls": 2.0}.items():
        for shots, level in {1: 60.0, 4: 80.0}.items():
            for seed in range(3):
                top1 = {"zero-shot": 50.0, "real": level + seed, "real+synthetic": level + 3 + bonus + 2 * seed}
                knobs = {"method": method, "data__n_shots": shots, "seed": seed}
                cells.append(make_run(f"table/cells/{method}-{shots}-{seed}", top1, **knobs))
    store = RunStore(str(tmp_path / "table"))
    write_stage_seconds(store, {"adapt": 4000.0})
    grid = {"grid": {"methods": ["is-synth", "datadream-cls"], "seeds": [0, 1, 2], "n_shots": [1, 4]}}
    return store, cells, cells[0][1].updated(grid)


def test_the_page_needs_nothing_but_itself(make_run):
    store, config = make_run("run", ACCURACIES)
    write_report(store, [(store, config)], config)
    html, page = read_page(store)
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not page.tags & {"script", "link", "iframe"}


def test_the_page_holds_the_figures_and_the_result_in_words(make_run):
    store, config = make_run("run", ACCURACIES)
    write_report(store, [(store, config)], config)
    _, page = read_page(store)
    for figure in ACCURACIES.values():
        assert f"{figure}" in page.text
    assert "photos, 4 photos per class: datadream-cls" in page.text
    assert "57.4 % without training, 86.8 % on the photos alone, 87.9 % with 30 generated images." in page.text
    assert "+1.1" in page.text
    assert "3 adapters" in page.text
    assert "2 h 03 min" in page.text
    assert "adapt.learning_rate" in page.text


def test_intervals_calibration_and_confusion_are_shown(make_run):
    store, config = make_run("run", ACCURACIES)
    write_report(store, [(store, config)], config)
    _, page = read_page(store)
    assert (
        "real+synthetic, datadream-cls 87.9 85.9 to 89.9 99.0 98.0 to 100.0 87.9 84.9 to 90.9 5.5 4.5 to 7.5"
        in page.text
    )
    assert "chosen on the test photos" not in page.text.lower()


def test_the_page_says_what_went_wrong_and_what_images_changed(make_run):
    store, config = make_run("run", ACCURACIES)
    labels = [0] * 4 + [1] * 4 + [2] * 4
    write_logits(store, "real", labels, [0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2], 3)
    write_logits(store, "real+synthetic", labels, [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 1], 3)
    write_report(store, [(store, config)], config)
    html, page = read_page(store)
    assert "2 of 12 test photos were taken for another class by the classifier trained on real+synthetic" in page.text
    assert html.count('alt="photo of dog"') == html.count('alt="photo of cat"') == 1
    assert "cat, taken for dog: 1 of 4 photos" in page.text
    assert "Of 3 classes, 1 got better with generated images and 1 got worse." in page.text
    assert f"{CLASS_NAMES[0]} 4 75.0 100.0 +25.0 1 0" in page.text
    assert "cat 4 100.0 75.0 −25.0 0 1" in page.text
    assert "cat 4 75 25" in page.text
    assert "real+synthetic +0.0 −33.3 to +33.3 2 2" in page.text
    assert "vote of real and real+synthetic" in page.text
    assert "predict . PHOTOS --setting real,real+synthetic asks both for their mean probability." in page.text


def test_the_page_of_a_table_says_what_votes_add_seed_by_seed(table):
    """Of the runs that kept logits: two seeds of one method at four shots."""
    store, cells, config = table
    labels = [0] * 4 + [1] * 4 + [2] * 4
    for seed, wrong in enumerate(([2, 2], [2, 1])):
        run = next(run for run, c in cells if (c.method, c.data.n_shots, c.seed) == ("datadream-cls", 4, seed))
        write_logits(run, "real", labels, [*labels[:4], *wrong, *labels[6:]], 3)
        # As sure of the same photos, and of equally probable classes the first one is taken.
        write_logits(run, "real+synthetic", labels, labels, 3)
    write_report(store, cells, config)
    _, page = read_page(store)
    assert "datadream-cls, vote +12.5 ± 5.9" in page.text
    assert "is-synth, vote" not in page.text


def test_a_matrix_of_many_classes_is_not_shown(make_run):
    store, config = make_run("run", ACCURACIES, n_classes=21)
    write_logits(store, "real+synthetic", list(range(21)), [0, *range(20)], 21)
    write_report(store, [(store, config)], config)
    html, page = read_page(store)
    assert "taken for" in page.text
    assert 'class="confusion"' not in html


def test_the_page_of_a_thousand_classes_stays_bounded(make_run):
    store, config = make_run("run", ACCURACIES, n_classes=1000)
    labels = list(range(1000)) * 2
    write_logits(store, "real", labels, labels, 1000)
    write_logits(store, "real+synthetic", labels, labels[1:] + labels[:1], 1000)
    write_report(store, [(store, config)], config)
    html, page = read_page(store)
    assert "2,000 of 2,000 test photos were taken for another class" in page.text
    assert "The 10 that got better most, and as many that got worse most." in page.text
    assert html.count("taken for <strong>") == 12
    assert len(html) < 500_000


def test_what_to_do_next_can_be_pasted_and_names_no_folder(make_run, table):
    store, config = make_run("run", ACCURACIES)
    write_report(store, [(store, config)], config, "datadream run --recipe paper data.source=photos")
    _, page = read_page(store)
    for words in ("predict . photo.jpg", "export . --to clip", "load_dataset('./dataset')", "datadream run ."):
        assert words in page.text
    assert "on a photo, or on all in a folder, by real+synthetic (best of 4 on" in page.text
    assert "Made by datadream run --recipe paper data.source=photos" in page.text
    assert store.root not in page.text
    store, cells, config = table
    write_report(store, cells, config)
    assert "predict cells/datadream-cls-4-0 photo.jpg" in read_page(store)[1].text
    write_report(store, cells[-1:], config)  # a grid of one run, whose folder is a cell all the same
    assert "predict cells/datadream-cls-4-2 photo.jpg" in read_page(store)[1].text


def test_what_to_do_next_exports_what_can_be_a_checkpoint(make_run):
    def exports(run: str, *settings: str, **changes: object) -> list[str]:
        store, config = make_run(run, dict.fromkeys(settings, 50.0), **changes)
        write_report(store, [(store, config)], config)
        return re.findall(r"export \. --to clip(?: --setting \S+)?", read_page(store)[1].text)

    assert exports("closed", "zero-shot", "gda-real") == ["export . --to clip --setting zero-shot"]
    assert exports("words", "zero-shot", "real", classify__context=4) == ["export . --to clip --setting zero-shot"]
    assert exports("trained", "gda-real", "real") == ["export . --to clip"]
    assert exports("none", "gda-real") == []


def test_what_votes_is_no_checkpoint(make_run):
    store, config = make_run("run", {})
    for setting in ("real", "real+synthetic"):
        write_setting(store, setting, 50.0, CLASS_NAMES, chosen_by="folds")
    write_report(store, [(store, config)], config)
    _, page = read_page(store)
    assert "by real and real+synthetic (they vote: no validation photos compare them)" in page.text
    assert re.search(r"export \. --to clip --setting real(?!\+)", page.text)


def test_of_one_photo_a_class_the_page_says_what_zero_shot_adds_to_the_vote(make_run):
    store, config = make_run("run", {})
    labels = [0] * 4 + [1] * 4 + [2] * 4
    for setting, first, of_shots in (("real", 1, None), ("real+synthetic", 0, None), ("zero-shot", 1, 70.0)):
        write_setting(store, setting, 50.0, CLASS_NAMES, chosen_by=None, val_top1=of_shots)
        write_logits(store, setting, labels, [first, *labels[1:]], 3)
    write_report(store, [(store, config)], config)
    _, page = read_page(store)
    assert "by real, real+synthetic and zero-shot (they vote: no validation photos compare them" in page.text
    # Of equally probable classes the first one is taken.
    assert "vote of real and real+synthetic +8.3" in page.text
    assert "vote of real, real+synthetic and zero-shot +0.0" in page.text
    assert "predict . PHOTOS --setting real,real+synthetic asks both" in page.text
    assert re.search(r"export \. --to clip --setting real(?!\+)", page.text)


def test_a_method_of_the_users_own_is_named_without_its_folder(make_run, tmp_path):
    own = f"{tmp_path}/private/mine.py:make"
    cells = []
    for seed in (0, 1):
        store, config = make_run(f"table/cells/{seed}", ACCURACIES, seed=seed)
        for setting in ("real", "real+synthetic"):
            write_logits(store, setting, [0, 1, 2], [0, 1, seed], 3)
        cells.append((store, config.model_copy(update={"method": own})))
    store = RunStore(str(tmp_path / "table"))
    write_report(store, cells, cells[0][1])
    html, page = read_page(store)
    assert "Images by mine.py:make at 4 photos" in page.text
    assert "private" not in html


def test_when_and_on_what_the_run_was_made_is_said(make_run):
    store, config = make_run("run", ACCURACIES)
    on = {"workers": 2, "each": "1 CPU", "nodes": 1}
    for stage, minute in {"adapt": "10:05", "classify": "10:09"}.items():
        record = StageSeconds(seconds=1.0, ended=f"2026-01-02 {minute} UTC", hardware=on)
        store.write_json(stage_seconds(stage), record.to_json())
    write_report(store, [(store, config)], config)
    assert "On 2 workers with 1 CPU each on 1 node; ended 2026-01-02 10:09 UTC." in read_page(store)[1].text


def test_samples_of_a_training_are_a_strip_for_each_adapter(make_run):
    store, config = make_run("run", ACCURACIES, adapt__samples_every=2)
    write_samples(store, "class-00000", list(range(2, 41, 2)))
    write_report(store, [(store, config)], config)
    html, page = read_page(store)
    assert html.count("four images after step") == 8
    assert "a photo of a cat step 6 step 10" in page.text
    assert "step 40" in page.text


def test_weights_that_test_photos_chose_are_marked_wherever_figures_are(make_run):
    store, config = make_run("run", ACCURACIES, classify__select_on="test")
    for setting, top1 in ACCURACIES.items():
        write_setting(store, setting, top1, CLASS_NAMES, chosen_by="test")
    write_report(store, [(store, config)], config)
    _, page = read_page(store)
    assert "Weights chosen on the test photos themselves" in page.text
    assert "Test accuracy, %" in page.text
    assert "Validation accuracy, %" not in page.text
    records = store.read_json("metrics.json")
    assert {r["chosen_by"] for r in records if r["setting"] != "zero-shot"} == {"test"}


def test_what_filters_left_out_is_shown_and_recorded(make_run):
    store, config = make_run("run", ACCURACIES)
    write_selection(store)
    write_report(store, [(store, config)], config)
    assert "seed 0 1,232 1,200 2 0 30 cat: 10 of 30" in read_page(store)[1].text
    found = {record["setting"]: record["selection"] for record in store.read_json("metrics.json")}
    assert found["real"] is None
    assert found["synthetic"] == {
        "candidates": 1232,
        "published": 30,
        "rejected": {"label": 1200, "copy": 2, "redundant": 0},
        "n_short": 1,
        "worst": {"name": "cat", "candidates": 30, "n_images": 10},
    }


def test_metrics_json_lists_the_records(make_run):
    store, config = make_run("run", ACCURACIES)
    write_report(store, [(store, config)], config)
    assert {r["setting"]: r["top1"] for r in store.read_json("metrics.json")} == ACCURACIES


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_pictures_decode(make_run, kind):
    store, config = make_run("run", ACCURACIES, dataset=kind)
    write_report(store, [(store, config)], config)
    _, page = read_page(store)
    pictures = [link for link in page.links if link.startswith("data:image")]
    assert len(pictures) == 3 * (4 + 8)
    for uri in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert("RGB").size == (16, 16)


def test_page_and_records_tell_neither_users_nor_hosts(make_run):
    private = {
        "data.source": "sftp://alice:s3cret@host.example/home/alice/photos",
        "diffusion.model": "/home/alice/models/sd",
        "classify.model": "local-dir:/home/alice/clip",
        "classify.pretrained": "/home/alice/clip.pt",
        "cluster.address": "ray://host.example:10001",
        "tracking.project": "alice",
    }
    store, config = make_run("run", ACCURACIES)
    told = config.updated(private)
    write_report(store, [(store, told)], told)
    html, page = read_page(store)
    for text in (html, store.read_bytes("metrics.json").decode()):
        assert not [word for word in ("alice", "s3cret", "host.example", "/home") if word in text]
    assert "photos, 4 photos per class" in page.text
    assert "data.source photos" in page.text
    assert "classify.model local-dir:clip" in page.text
    assert "cluster." not in page.text


def test_class_names_are_escaped(make_run):
    store, config = make_run("run", ACCURACIES)
    write_report(store, [(store, config)], config)
    html, page = read_page(store)
    assert "<b>" not in html
    assert "<b>&x" in page.text


def test_a_table_of_one_run_has_its_times_as_well(make_run, tmp_path):
    cell, config = make_run("cells/only", ACCURACIES)
    table = RunStore(str(tmp_path / "table"))
    write_stage_seconds(table, {"adapt": 4000.0})
    assert stage_rows(table, [(cell, config)])[0] == ("all runs", [4000.0, None, None], 4000.0)


def test_a_table_has_means_spreads_and_gains(table):
    store, cells, config = table
    write_report(store, cells, config)
    _, page = read_page(store)
    # Seeds give 85, 87, 89; against 80, 81, 82 that is 5, 6, 7.
    assert "87.0 ± 2.0" in page.text
    assert "all runs 66 min 40 s" in page.text
    assert "+6.0 ± 1.0" in page.text
    assert "Gain from generated images, points" in page.text
    assert "1 and 4 photos per class: is-synth and datadream-cls" in page.text
    assert "seeds 0, 1 and 2" in page.text
    assert (
        "4 photos per class: 50.0 % without training, 81.0 % on the photos alone, 87.0 % with 30 generated images"
        " by datadream-cls, the best of 2 methods (+6.0 ± 1.0 points, seed by seed)." in page.text
    )
    assert len(store.read_json("metrics.json")) == 2 * 3 * (2 + 2)


def test_a_curve_over_generated_images_has_a_chart_and_the_table_has_its_end(make_run, tmp_path):
    cells = [make_run("base", {"zero-shot": 50.0, "real": 80.0}, method="none")]
    for n, top1 in {10: 70.0, 20: 75.0, 40: 81.0}.items():
        changes = {"generate__images_per_class": n, "method": "datadream-cls"}
        cells.append(make_run(f"images-{n}", {"synthetic": top1}, **changes))
    store = RunStore(str(tmp_path / "curve"))
    write_report(store, cells, cells[-1][1].updated({"grid.images_per_class": [10, 20, 40]}))
    _, page = read_page(store)
    assert "Test accuracy by generated images per class, %" in page.text
    assert "Test accuracy by photos per class, %" not in page.text
    assert "80.0 % on the photos alone, 81.0 % on 30 generated images alone." in page.text
    assert [r["images_per_class"] for r in store.read_json("metrics.json")] == [0, 0, 10, 20, 40]


def test_a_table_shows_one_run_of_each_method(table):
    store, cells, config = table
    write_report(store, cells, config)
    html, page = read_page(store)
    for method in ("is-synth", "datadream-cls"):
        assert html.count(f"image generated by {method} of cat") == 8
    assert html.count("real photo of cat") == 4
    assert "datadream-cls, 4 shots, seed 0" in page.text


def test_equal_runs_give_equal_pages(make_run):
    store, config = make_run("run", ACCURACIES)
    write_report(store, [(store, config)], config)
    first = store.read_bytes("report/index.html")
    write_report(store, [(store, config)], config)
    assert store.read_bytes("report/index.html") == first


def test_without_test_photos_the_page_says_so_and_how_to_add_them(make_run):
    store, config = make_run("run", dict.fromkeys(ACCURACIES))
    write_report(store, [(store, config)], config)
    _, page = read_page(store)
    assert "No test photos: accuracy unknown." in page.text
    assert "test/<class name>/" in page.text
    assert "80.0" in page.text
    assert "Accuracy of each class" not in page.text


def test_a_run_without_images_has_a_page(make_run):
    store, config = make_run("run", {"zero-shot": 57.4, "real": 86.8}, dataset=None, method="none")
    write_report(store, [(store, config)], config)
    _, page = read_page(store)
    assert "57.4 % without training, 86.8 % on the photos alone." in page.text
    assert "Gain from generated images" not in page.text


def test_a_folder_with_a_config_alone_has_a_page(make_run, tmp_path):
    _, config = make_run("run", {})
    store = RunStore(str(tmp_path / "bare"))
    write_report(store, [(store, config)], config)
    _, page = read_page(store)
    assert "No classifier has been trained yet." in page.text
    assert store.read_json("metrics.json") == []


def test_a_run_in_an_object_store_has_a_page(make_run):
    _, config = make_run("run", {})
    store = RunStore("memory://report")
    write_few_shot(store, CLASS_NAMES, 4)
    write_dataset(store, "parquet", len(CLASS_NAMES))
    write_adapters(store, 20)
    write_report(store, [(store, config)], config)
    _, page = read_page(store)
    assert "Mean of 20 adapters" in page.text
    assert len([link for link in page.links if link.startswith("data:image")]) == 3 * (4 + 8)


def test_the_worst_of_many_classes_are_shown(make_run):
    store, config = make_run("run", ACCURACIES, n_classes=40)
    write_report(store, [(store, config)], config)
    _, page = read_page(store)
    assert "The 30 worst of 40 classes by real+synthetic, datadream-cls" in page.text
    assert "class 39" in page.text
    assert not re.search(r"class 5\b", page.text)
