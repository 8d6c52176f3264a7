"""What the backbone for own pictures learns from: drawings out of an icon archive of the real format."""

import io
import json
import sys
import tarfile
from itertools import product
from pathlib import Path

import matplotlib
import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from datadream import recipes
from datadream.models import tiny
from datadream.models.source import resolve
from datadream.models.tiny import drawings as drawings_module
from datadream.models.tiny import pretrain, train_clip, train_vae
from datadream.models.tiny.drawings import FREE, Drawings, chosen_icons, draw, read_drawings, subject_of
from datadream.models.tiny.glyphs import CLASS_NAMES
from datadream.models.tiny.painting import IMAGE_SIZE, bend, restroke
from datadream.models.tiny.pictures import Pictures
from datadream.models.tiny.train_unet import train_unet

SHIPPED = Path(tiny.__file__).parent / "pictures"
SQUARE = '<path fill="currentColor" d="M4 4h16v16H4z"/>'
BAR = '<path fill="currentColor" d="M2 9h20v6H2z"/>'
HELD_OUT = {"plain1", "more-colors"}
DISC = '<circle cx="12" cy="12" r="9" fill="#f00"/>'


def about(licence="MIT", category="Material", palette=False):
    licence_told = {"title": licence, "spdx": licence}
    return {
        "name": "Icons",
        "author": {"name": "A. N. Author"},
        "license": licence_told,
        "category": category,
        "palette": palette,
    }


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Four plain sets and two coloured ones that are free, and three that are not to be taken."""
    sets = {f"plain{number}": about() for number in range(4)}
    sets |= {"colors": about(palette=True), "more-colors": about(palette=True)}
    sets |= {"twemoji": about(), "nc": about("CC-BY-NC-4.0"), "brands": about(category="Logos")}
    icons = {"box-filled": {"body": SQUARE}, "bar-24": {"body": BAR}, "broken": {"body": "<path d="}}
    path = tmp_path_factory.mktemp("icons") / "icons.tgz"
    files = {"package/collections.json": sets}
    for name in sets:
        own = (
            {"disc": {"body": DISC}, "bar": {"body": BAR.replace("currentColor", "#00f")}, "box": {"body": DISC}}
            if name == "colors"
            else icons
        )
        files[f"package/json/{name}.json"] = {"prefix": name, "width": 24, "height": 24, "icons": own}
    with tarfile.open(path, "w:gz") as made:
        for name, content in files.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def drawings(archive):
    return read_drawings(archive)[0]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("arrow-down-bold", "arrow down"),
        ("baseline-cake-24", "cake"),
        ("house2-outline", "house"),
        ("bell-off", ""),
        ("letter-a", ""),
        ("circle-o", "circle"),
    ],
)
def test_a_subject_is_an_icons_name_without_numbers_and_styles(name, subject):
    assert subject_of(name) == subject


def test_names_of_few_sets_are_left_out_and_none_has_too_many_drawings():
    many = {f"set{number}": ["star", *(f"moon-{k}" for k in range(5))] for number in range(50)}
    chosen = chosen_icons(many | {"rare": ["unicorn", "star"]}, {name: {} for name in [*many, "rare"]})
    taken = [name for names in chosen.values() for name in names]
    assert taken.count("star") == 40
    assert sum(name.startswith("moon") for name in taken) == 40
    assert "unicorn" not in taken


def test_only_free_sets_that_no_benchmark_measures_on_are_drawn(drawings):
    assert [each["name"] for each in drawings.sets] == [
        "colors",
        "more-colors",
        *(f"plain{number}" for number in range(4)),
    ]
    assert [each["drawings"] for each in drawings.sets] == [2] * 6
    assert all(each["licence"] == "MIT" and each["author"] == "A. N. Author" for each in drawings.sets)


def test_drawings_have_names_shapes_and_colours(drawings):
    # "disc" is of one set alone, and no broken body is drawn.
    assert sorted(drawings.mask_names) == ["bar"] * 4 + ["box"] * 4
    assert drawings.masks.shape == (8, 64, 64)
    assert drawings.picture_names == ["bar", "box"] * 2
    red, green, blue, opacity = drawings.pictures[0, :, 32, 32].tolist()
    assert (red, green, blue, opacity) == (0, 0, 255, 255)
    # Fitted to 48 of 64 pixels whatever the icon's own margin.
    assert drawings.masks[drawings.mask_names.index("box")].gt(127).sum() == 48 * 48


def test_drawings_alike_to_a_benchmarks_picture_are_left_out(archive, tmp_path):
    bar = Image.new("L", (200, 100), 255)
    bar.paste(20, (20, 30, 180, 78))
    bar.save(tmp_path / "bar.png")
    left, _ = read_drawings(archive, unlike=[tmp_path])
    assert set(left.mask_names) == {"box"}
    assert left.picture_names == ["box"] * 2


def test_opacity_is_multiplied_in_at_edges_too(drawings):
    inks, opacity = drawings.pictures[:, :3], drawings.pictures[:, 3:]
    assert (inks <= opacity).all()
    assert ((opacity > 0) & (opacity < 255)).any()


def test_some_sets_are_held_out(archive, monkeypatch):
    monkeypatch.setattr(drawings_module, "_is_held_out", HELD_OUT.__contains__)
    learnt, held_out = read_drawings(archive)
    assert {each["name"] for each in held_out.sets} == HELD_OUT
    assert not {each["name"] for each in learnt.sets} & HELD_OUT
    assert [len(part) for part in (learnt.masks, learnt.pictures, held_out.masks, held_out.pictures)] == [6, 2, 2, 2]


def test_a_drawings_own_box_counts(archive):
    collection = {"width": 24, "height": 24, "icons": {"wide": {"body": SQUARE, "width": 48}}}
    assert draw(collection, "wide", 96).size == (96, 48)


def test_pictures_are_the_same_for_a_seed_and_captioned_by_what_they_show(drawings):
    several = Drawings(
        masks=drawings.masks,
        mask_names=drawings.mask_names,
        pictures=drawings.pictures,
        picture_names=["disc"] * 4,
    )
    pictures = Pictures(glyphs=torch.full((2, len(CLASS_NAMES), 64, 64), 200, dtype=torch.uint8), drawings=several)
    first, again = (pictures.sample(64, rng(), glyph_share=0.3, grid_share=0.3) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.images.shape == (64, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert -1 <= first.images.min() < first.images.max() <= 1
    assert all(subject in caption for subject, caption in zip(first.subjects, first.captions, strict=True))
    assert {"bar", "box", "disc"} < set(first.subjects)
    assert set(first.subjects) - {"bar", "box", "disc"} <= set(CLASS_NAMES)


def test_pictures_of_frequent_names_can_come_more_often():
    names = ["often"] * 9 + ["rare"]
    blank = torch.zeros(10, 64, 64, dtype=torch.uint8)
    drawn = Drawings(
        masks=blank, mask_names=names, pictures=blank[:1, None].expand(1, 4, 64, 64), picture_names=["rare"]
    )
    pictures = Pictures(glyphs=blank[None, :1].expand(1, len(CLASS_NAMES), 64, 64), drawings=drawn)
    shown = {often: pictures.sample(1500, rng(), glyph_share=0, often=often).subjects for often in (False, True)}
    # 80 % are plain drawings, of which 9 in 10, or by count 81 in 83, have the frequent name.
    assert shown[False].count("often") / 1500 == pytest.approx(0.72, abs=0.03)
    assert shown[True].count("often") / 1500 == pytest.approx(0.8 * 81 / 83, abs=0.03)


def test_a_backbone_is_made_by_the_command_stage_after_stage(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(drawings_module, "_is_held_out", HELD_OUT.__contains__)
    monkeypatch.setattr(train_vae, "CALIBRATION_IMAGES", 8)
    for module in (train_vae, train_clip):
        monkeypatch.setattr(module, "VALIDATION_IMAGES", 8)
    few = {"cached_images": 256, "renew_every": 1}
    monkeypatch.setattr(pretrain, "train_unet", lambda *args, **knobs: train_unet(*args, **knobs | few))
    fonts, work, made = Path(matplotlib.get_data_path(), "fonts", "ttf"), tmp_path / "work", tmp_path / "made"

    def run(stage, *more):
        folders = ["--fonts", str(fonts), "--work", str(work), "--output", str(made)]
        monkeypatch.setattr(sys, "argv", ["pretrain", "--diet", "pictures", "--stage", stage, *folders, *more])
        pretrain.main()

    with pytest.raises(SystemExit):
        run("vae")  # nothing is drawn yet
    with pytest.raises(SystemExit):
        run("draw", "--icons", str(archive), "--unlike", str(tmp_path / "nowhere"))
    run("draw", "--icons", str(archive))
    for stage in ("vae", "clip", "unet"):
        run(stage, "--steps", "1")
    run("export")
    pipeline = StableDiffusionPipeline.from_pretrained(
        made / "diffusion", safety_checker=None, torch_dtype=torch.float32
    )
    image = pipeline("a photo of a box", num_inference_steps=2, height=IMAGE_SIZE, width=IMAGE_SIZE).images[0]
    assert image.size == (IMAGE_SIZE, IMAGE_SIZE)
    open_clip.create_model_and_transforms(f"local-dir:{made / 'clip'}")
    assert {each["name"] for each in json.loads((made / "drawings.json").read_text())} & HELD_OUT == set()
    assert json.loads((made / "pretrain_log.json").read_text())["unet"]["steps"] == 1
    assert not (work / "unet.pt").exists()


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_of_one_shows_one_thing(seed, drawings):
    pictures = Pictures(glyphs=torch.ones(1, len(CLASS_NAMES), 64, 64, dtype=torch.uint8), drawings=drawings)
    assert pictures.sample(1, rng(seed), glyph_share=0.4).images.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)


@pytest.mark.parametrize(("change", "seed"), product([bend, restroke], range(3)))
def test_masks_stay_masks_however_they_are_drawn(change, seed, drawings):
    masks = drawings.masks.float().div(255).unsqueeze(1)
    made = change(masks, rng(seed))
    assert made.shape == masks.shape
    assert 0 <= made.min() <= made.max() <= 1
    assert (made.mean(dim=(1, 2, 3)) > 0.3 * masks.mean(dim=(1, 2, 3))).all()


def test_what_the_shipped_one_learnt_from_is_free_listed_and_no_benchmarks():
    sets = json.loads((SHIPPED / "drawings.json").read_text())
    assert len(sets) > 100
    assert {each["licence"] for each in sets} <= FREE
    assert all(each["author"] and each["drawings"] for each in sets)
    assert not {each["name"] for each in sets} & drawings_module.HELD_OUT


def test_recipe_laptop_has_the_shipped_one_and_its_clip_knows_its_generators_letters():
    config = recipes.laptop()
    folder, clip_folder = resolve(config.diffusion.model), f"local-dir:{resolve(config.classify.model)}"
    assert Path(folder) == SHIPPED / "diffusion"
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [f"a photo of a letter {letter}" for letter in "AHKOSTXZ"]
    drawn = pipeline(
        prompts,
        num_inference_steps=12,
        height=IMAGE_SIZE,
        width=IMAGE_SIZE,
        generator=[rng(seed) for seed in range(len(prompts))],
    ).images
    model, _, preprocess = open_clip.create_model_and_transforms(clip_folder)
    with torch.inference_mode():
        texts = model.eval().encode_text(open_clip.get_tokenizer(clip_folder)(prompts), normalize=True)
        images = model.encode_image(torch.stack([preprocess(image) for image in drawn]), normalize=True)
    assert ((images @ texts.T).argmax(dim=1) == torch.arange(len(prompts))).sum() >= 6
