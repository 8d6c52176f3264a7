"""What the page and the terminal say of images that were measured."""

import pytest

from datadream.report import images_text, write_report
from datadream.report.images import images_section
from datadream.run.layout import DATASET
from datadream.run.store import RunStore
from tests.report.fabricate import write_images
from tests.report.test_page import read_page
from tests.report.test_pictures import decode


@pytest.fixture
def table(make_run):
    """Two methods, two seeds."""
    cells = []
    for method, fid in {"datadream-cls": 10.0, "is-synth": 20.0}.items():
        for seed in range(2):
            cells.append(make_run(f"{method}-{seed}", {}, method=method, seed=seed))
            write_images(cells[-1][0], fid + 2 * seed)
    return cells


def test_a_row_for_each_method_over_its_seeds(table):
    section = images_section(table, table[:1])
    assert [(row.method, row.shots) for row in section.rows] == [("is-synth", 4), ("datadream-cls", 4)]
    assert [(cell.mean, cell.sd) for cell in section.rows[1].figures][:2] == [("11.0", "1.4"), ("0.125", "0.000")]
    assert [cell.mean for cell in section.rows[1].figures][-2:] == ["–", "0.90"]
    assert section.methods == ["is-synth", "datadream-cls"]
    assert section.classes[0] == ("dog", ["23.0", "13.0"])
    assert [name for name, _ in section.chart.legend] == section.methods


def test_the_terminal_has_the_same_figures(table):
    lines = images_text(table).splitlines()
    assert lines[0] == "30 images against 12 photos that are neither shots nor test photos"
    assert lines[-1].split()[:5] == ["datadream-cls", "4", "11.0", "±", "1.4"]


def test_a_shot_stands_beside_the_image_most_like_it(make_run):
    store, config = make_run("run", {})
    write_images(store, 10.0)
    (pair,) = images_section([(store, config)], [(store, config)]).pairs
    assert (pair.name, pair.similarity) == ("cat", "0.987")
    # The third row of the first shard is the second image of class 1: see write_dataset.
    assert decode(pair.image.uri).getpixel((0, 0)) == (100, 20, 128)
    assert decode(pair.photo.uri).getpixel((0, 0)) == (100, 20, 128)


def test_images_that_are_gone_and_photos_out_of_reach_leave_the_figures(make_run):
    store, config = make_run("run", {})
    gone = {"label": 0, "shard": "data/elsewhere.parquet", "image": "0", "photo": "cat/1.png", "similarity": 0.9}
    write_images(store, 10.0, closest=[gone])
    section = images_section([(store, config.updated({"data.source": "/nowhere"}))], [])
    assert section.pairs == []
    assert section.rows[0].figures[0].mean == "10.0"
    store.remove(DATASET)
    section = images_section([(store, config)], [])
    assert (section.pairs, section.rows[0].figures[0].mean) == ([], "10.0")


def test_runs_that_another_model_measured_are_left_out(table):
    write_images(table[-1][0], 99.0, model="ViT-L-14", pretrained="openai")
    assert images_section(table, table[:1]).rows[0].figures[0].mean == "20.0"


def test_the_page_shows_it_without_private_paths(make_run, tmp_path):
    store, config = make_run("run", {"real": 80.0})
    write_images(store, 10.0)
    write_report(store, [(store, config)], config)
    html, page = read_page(store)
    assert "datadream-cls 4 10.0 0.125 0.500 0.75 0.50 0.80 – 0.90" in page.text
    assert "30 images of a run against 12 photos that are neither shots nor test photos" in page.text
    assert "local-dir:clip" in page.text
    assert "somebody" not in html
    assert 'alt="shot of cat"' in html


def test_a_table_shows_images_by_shots(make_run, tmp_path):
    cells = [make_run(f"k{shots}", {"real": 80.0}, data__n_shots=shots) for shots in (1, 4)]
    store = RunStore(str(tmp_path / "table"))
    write_report(store, cells, cells[0][1].updated({"grid": {"n_shots": [1, 4]}}))
    html, page = read_page(store)
    assert "By the photos that the generator saw" in page.text
    assert html.count('alt="image from 1 photo of cat"') == html.count('alt="image from 4 photos of cat"') == 8
    store, config = cells[0]
    write_report(store, [cells[0]], config)
    assert "By the photos that the generator saw" not in read_page(store)[1].text
