"""Lists of photos as people have them, and one line for each thing that is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from datadream.data.datasets import Dataset, open_source
from datadream.data.few_shot import check_photos, sample_shots
from datadream.data.intake import intake, intake_lines

PHOTOS = ("cats/0.png", "cats/1.png", "dogs/0.png", "dogs/1.png")


@pytest.fixture
def folder(tmp_path) -> Path:
    for number, name in enumerate(PHOTOS):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6), (50 * number, 0, 0)).save(tmp_path / name)
    return tmp_path


def listed(folder: Path, text: str, name: str = "list.csv", encoding: str = "utf-8") -> Dataset:
    (folder / name).write_text(text, encoding=encoding)
    return open_source(str(folder / name)).dataset()


def refused(folder: Path, text: str, message: str, name: str = "list.csv") -> None:
    with pytest.raises(ValueError, match=message) as told:
        listed(folder, text, name)
    assert "\n" not in str(told.value)


ROWS = [("cats/0.png", "cat", "train"), ("dogs/0.png", "dog", "train"), ("./cats/1.png", "cat", "Test")]


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [
        (("path", "label", "split"), ","),
        (("File_Name", " Class", "set"), ";"),
        (("image", "category", "subset"), "\t"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_usual_headers_delimiters_and_marks(folder, header, delimiter, encoding):
    lines = [delimiter.join(cells) for cells in (header, *ROWS)]
    dataset = listed(folder, "\r\n".join([*lines, "", delimiter * 2]), encoding=encoding)
    assert dataset.class_names == ("cat", "dog")
    assert [(photo.key, photo.label) for photo in dataset.pool] == [("cats/0.png", 0), ("dogs/0.png", 1)]
    assert [(photo.key, photo.label) for photo in dataset.test] == [("cats/1.png", 0)]
    assert dataset.val == ()


def test_accented_names_are_found_in_either_spelling(folder):
    """Macs write an accented letter as two characters, and spreadsheets as one."""
    (folder / "cafe\u0301s").mkdir()
    (folder / "dogs" / "1.png").rename(folder / "cafe\u0301s" / "e\u0301te\u0301.png")
    dataset = listed(folder, "path,label\ncaf\u00e9s/\u00e9t\u00e9.png,caf\u00e9\ndogs/0.png,dog\n")
    assert dataset.class_names == ("caf\u00e9", "dog")
    assert [photo.key for photo in dataset.pool] == ["cafe\u0301s/e\u0301te\u0301.png", "dogs/0.png"]


def test_a_split_that_comes_late_is_not_passed_over(folder):
    rows = [{"path": path, "label": path[:3]} for path in PHOTOS]
    rows[3]["split"] = "test"
    refused(folder, "\n".join(map(json.dumps, rows)), "row 4: it has a 'split', which rows above lack", "l.jsonl")


def test_json_lines_and_columns_beside_them(folder):
    entries = [
        {"file": path, "label": number % 2, "class_name": "ab"[number % 2], "w": 8}
        for number, path in enumerate(PHOTOS)
    ]
    dataset = listed(folder, "\n".join(map(json.dumps, entries)) + "\n\n", "list.jsonl")
    assert dataset.class_names == ("a", "b")
    assert [photo.label for photo in dataset.pool] == [0, 1, 0, 1]


def test_a_list_without_splits_goes_the_way_of_a_folder_of_classes(folder):
    dataset = listed(folder, "path,label\n" + "\n".join(f"{path},{path[:3]}" for path in PHOTOS))
    by_folder = open_source(str(folder)).dataset()
    few_shots = [sample_shots(each, 1, 0, "{name}") for each in (dataset, by_folder)]
    assert [few_shot.shots for few_shot in few_shots] == [few_shots[0].shots] * 2
    assert [few_shot.test for few_shot in few_shots] == [few_shots[0].test] * 2


def test_photos_of_a_list_are_read_and_accounted_for(folder):
    absolute = folder / "dogs" / "0.png"
    dataset = listed(folder, f'path,label\ncats/0.png,cat\n"{absolute}",dog\n')
    source = open_source(str(folder / "list.csv"))
    few_shot = sample_shots(dataset, 1, 0, "a {name}")
    check_photos(source, [few_shot])
    assert source.read("dogs/0.png").getpixel((0, 0)) == (100, 0, 0)
    assert intake_lines(intake(dataset, few_shot)) == [
        "photos: 2 classes, 1 shots each, 0 to validate and 0 to test",
        "  cat: 1 photos, prompted as 'a cat'",
        "  dog: 1 photos, prompted as 'a dog'",
        "  left out: 2 photos that the list does not name",
    ]


GOOD = "path,label\ncats/0.png,cat\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "dogs/9.png,dog\ndogs/8.png,dog\n", r"row 3: 'dogs/9.png' does not exist, nor do those of 1 further"),
        (GOOD + "nowhere/0.png,dog\n", r"row 3: 'nowhere/0.png' does not exist. Paths count from the list's folder"),
        (GOOD + "./cats/../cats/0.png,dog\n", r"row 3: './cats/../cats/0.png' is listed in row 2 already"),
        (GOOD + "dogs/0.png,  \n", "row 3: the class is '', and every photo needs one"),
        (
            GOOD + "dogs/0.png,dog, grey\n",
            "row 3: 'grey' is in no column. Put texts that have a ',' in them",
        ),
        (GOOD + "\n,dog\n", "row 4: the path is '', and every photo needs one"),
        (GOOD + "../dogs/0.png,dog\n", "row 3: '../dogs/0.png' is outside of the list's folder"),
        (GOOD + "/etc/0.png,dog\n", "row 3: '/etc/0.png' is outside of the list's folder"),
        (GOOD, r"list 'list.csv' has 1 classes \(cat\): need at least 2"),
        ("", "list 'list.csv' has 0 classes: need at least 2"),
        ("path,label\n", "list 'list.csv' has 0 classes: need at least 2"),
        (
            "cats/0.png,cat\ndogs/0.png,dog\n",
            r"has no column of paths \(it has: cats/0.png, cat\). Its first line names",
        ),
        (
            "path,kind\ncats/0.png,cat\n",
            r"has no column of classes \(it has: path, kind\).*call it class_name or label",
        ),
        (
            "path,label,split\ncats/0.png,cat,train\ndogs/0.png,dog,tarin\n",
            "row 3: split 'tarin' is unknown. Did you mean 'train'",
        ),
        ("path,label,split\ncats/0.png,cat,train\ndogs/0.png,dog,\n", "row 3: split '' is unknown. Known: train, val"),
        (
            "path,label,split\ncats/0.png,cat,train\ndogs/0.png,dog,test\n",
            "row 3: class 'dog' has no training photo. Known: cat.",
        ),
        ("path,label,split\ncats/0.png,cat,val\ndogs/0.png,dog,test\n", "row 2: .* No row has the split train"),
    ],
)
def test_what_is_wrong_with_a_row_is_one_line(folder, text, message):
    refused(folder, text, message)


def test_empty_cells_of_a_spreadsheet_are_no_text(folder):
    (folder / "list.csv").write_text("path,label\ncats/0.png,cat,,\ndogs/0.png,dog, ,\n")
    assert open_source(str(folder / "list.csv")).dataset().class_names == ("cat", "dog")


def test_lines_that_are_no_json_and_files_in_other_encodings_are_named(folder):
    refused(folder, '{"path": "cats/0.png", "label": "cat"}\n[1]\n', r"row 2: '\[1\]' is no JSON object", "list.jsonl")
    (folder / "list.csv").write_bytes("path,label\ncats/0.png,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ValueError, match="list 'list.csv' is not in UTF-8. Save it as UTF-8"):
        open_source(str(folder / "list.csv")).dataset()
