"""Captions and descriptions from files: found by path or name, whole, and recorded with the shots."""

import json

import pytest

from datadream import recipes
from datadream.config import DataConfig
from datadream.data.few_shot import FewShotSet
from datadream.data.texts import with_texts
from datadream.run.cell import Cell
from datadream.run.store import RunStore

FEW_SHOT = FewShotSet(
    class_names=("red fox", "wolf"),
    prompts=("a photo of a red fox", "a photo of a wolf"),
    shots=(("red_fox/1.jpg", "red_fox/2.jpg"), ("wolf/1.jpg", "wolf/a b.jpg")),
    val=(),
    test=(),
    flippable=True,
)
CAPTIONS = {
    "red_fox/1.jpg": "a fox: in snow",
    "red_fox/2.jpg": "a fox, asleep",
    "wolf/1.jpg": "a wolf",
    "wolf/a b.jpg": 'two "wolves"',
}


def captions(path) -> dict[str, str]:
    return dict(with_texts(FEW_SHOT, DataConfig(captions=str(path))).captions)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.json", json.dumps(CAPTIONS | {"wolf/not a shot.jpg": "another"})),
        (
            "captions.yaml",
            "./red_fox/1.jpg: 'a fox: in  snow'\n2.jpg: a fox, asleep\nwolf/1.jpg: a wolf\na b.jpg: 'two \"wolves\"'",
        ),
        (
            "captions.csv",
            'File_Name;Text\nred_fox/1.jpg;"a fox: in snow"\n2.jpg;a fox, asleep\nwolf/1.jpg;a wolf\n'
            'a b.jpg;"two ""wolves"""',
        ),
        (
            "captions.jsonl",
            "\n".join(json.dumps({"path": path, "caption": text}) for path, text in CAPTIONS.items()),
        ),
    ],
)
def test_captions_are_found_by_path_or_by_a_name_that_one_shot_has(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert captions(tmp_path / name) == CAPTIONS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        # 1.jpg is the name of two shots, and so of neither.
        ("c.yaml", "1.jpg: a\n2.jpg: b\na b.jpg: ''", "lacks the captions of 3 of 4 shots, such as 'red_fox/1.jpg'"),
        ("c.json", "[1, 2]", "is no mapping: write lines such as 'name: text'"),
        ("c.json", "{", "cannot be read"),
        (
            "c.csv",
            "photo,label\na,b",
            "row 2: it has the columns photo, label. Call those of photos and captions path",
        ),
        ("c.yaml", "a.jpg: a fox\nb.jpg: b\na.jpg: a wolf", "'a.jpg' is there twice, first in line 1: join them"),
        ("c.json", '{"a.jpg": "a fox", "a.jpg": "a wolf"}', "'a.jpg' is there twice: leave one"),
        ("d.csv", None, "'.*d.csv' cannot be read: .*No such file"),
        ("d.yaml", None, "'.*d.yaml' cannot be read: .*No such file"),
    ],
)
def test_captions_that_do_not_fit_are_explained(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"data.captions .*{message}"):
        captions(tmp_path / name)


def test_descriptions_of_every_class(tmp_path):
    (tmp_path / "d.yaml").write_text("red fox: [a fox in snow, a  sleeping fox, a fox in snow]\nwolf: a grey wolf\n")
    found = with_texts(FEW_SHOT, DataConfig(descriptions=str(tmp_path / "d.yaml")))
    assert found.descriptions == (("a fox in snow", "a sleeping fox"), ("a grey wolf",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("red fox: a\nwolv: b", "describes 'wolv', which is no class. Did you mean 'wolf'?"),
        ("red fox: a", "has no description of class 'wolf'. Give each class a text or a list"),
        ("red fox: a\nwolf: []", "has no description of class 'wolf'"),
        ("red fox: a\nwolf: [[b]]", "has no description of class 'wolf'"),
    ],
)
def test_descriptions_that_do_not_fit_are_explained(tmp_path, text, message):
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"data.descriptions .*{message}"):
        with_texts(FEW_SHOT, DataConfig(descriptions=str(tmp_path / "d.yaml")))


def test_what_was_read_is_recorded_and_the_files_may_go(tmp_path):
    sampled = Cell(recipes.digits(), RunStore(str(tmp_path / "none"))).few_shot
    (tmp_path / "c.json").write_text(json.dumps({photo.key: f"the scan {photo.key}" for photo in sampled.photos}))
    (tmp_path / "d.json").write_text(json.dumps({name: [f"{name}, by hand"] for name in sampled.class_names}))
    config = recipes.digits(
        **{"data.captions": str(tmp_path / "c.json"), "data.descriptions": str(tmp_path / "d.json")}
    )
    few_shot = Cell(config, RunStore(str(tmp_path / "run"))).few_shot
    assert few_shot.captions[few_shot.shots[3][1]] == f"the scan {few_shot.shots[3][1]}"
    record = few_shot.to_json()
    assert FewShotSet.from_json(json.loads(json.dumps(record))) == few_shot
    RunStore(str(tmp_path / "run")).write_json("few_shot.json", record)
    (tmp_path / "c.json").unlink()
    assert Cell(config, RunStore(str(tmp_path / "run"))).few_shot == few_shot
    plain = sampled.to_json()
    assert "captions" not in plain
    assert "descriptions" not in plain["classes"][0]
