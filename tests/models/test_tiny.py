"""The shipped tiny backbone: it loads through the plain library calls and does what it was pre-trained for."""

import json
import re
from functools import partial
from pathlib import Path

import matplotlib
import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from datadream.models import tiny
from datadream.models.tiny import train_clip as train_clip_module
from datadream.models.tiny import train_unet as train_unet_module
from datadream.models.tiny import train_vae as train_vae_module
from datadream.models.tiny.fonts import Face, choose_faces, find_faces
from datadream.models.tiny.glyphs import (
    CLASS_NAMES,
    DIGIT_NAMES,
    all_captions,
    class_prompts,
    render_faces,
    sample_glyphs,
)
from datadream.models.tiny.networks import (
    TEXT_POSITIONS,
    build_text_encoder,
    build_tokenizer,
    build_vae,
    text_encoder_of,
)
from datadream.models.tiny.painting import IMAGE_SIZE, TEMPLATE
from datadream.models.tiny.train_clip import accuracy, tokenize, train_clip
from datadream.models.tiny.train_unet import train_unet
from datadream.models.tiny.train_vae import psnr, train_vae

FOLDER = Path(tiny.__file__).parent
PICTURES = FOLDER / "pictures"


def shipped(backbone):
    return [path for part in ("diffusion", "clip") for path in (backbone / part).rglob("*") if path.is_file()]


MATPLOTLIB_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture(scope="module")
def faces():
    return [face for face in choose_faces(find_faces([MATPLOTLIB_FONTS])) if "DejaVu" in face.family]


@pytest.fixture(scope="module")
def masks(faces):
    return render_faces(faces)[0]


@pytest.fixture(scope="module")
def pipeline():
    pipeline = StableDiffusionPipeline.from_pretrained(
        FOLDER / "diffusion", safety_checker=None, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def clip():
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{FOLDER / 'clip'}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{FOLDER / 'clip'}")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("backbone", "most"), [(FOLDER, 12e6), (PICTURES, 14e6)])
def test_weights_are_small_enough_to_ship(backbone, most):
    assert 0 < sum(path.stat().st_size for path in shipped(backbone)) <= most


def test_shipped_files_are_readable_by_all_and_name_no_machine():
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in [*shipped(FOLDER), *shipped(PICTURES)])
    for path in FOLDER.rglob("*.json"):
        assert not re.search(r'"/\w+|_name_or_path', path.read_text()), path


@pytest.mark.parametrize("backbone", [FOLDER, PICTURES])
def test_log_holds_every_stage_with_a_falling_loss(backbone):
    log = json.loads((backbone / "pretrain_log.json").read_text())
    assert set(log) == {"vae", "clip", "unet"}
    for stage in log.values():
        assert stage["loss"][-1][0] == stage["steps"]
        assert stage["loss"][-1][1] < stage["loss"][0][1]


@pytest.mark.parametrize("backbone", [FOLDER, PICTURES])
def test_font_list_adds_up(backbone):
    fonts = json.loads((backbone / "fonts.json").read_text())
    assert sum(package["faces"] for package in fonts["packages"]) == fonts["faces"]
    assert all(package["licence"] for package in fonts["packages"])


def test_glyphs_are_the_same_for_a_seed_and_differ_between_seeds(masks):
    first, again, other = (sample_glyphs(masks, 32, rng(seed), letter_share=0.5) for seed in (3, 3, 4))
    assert torch.equal(first.images, again.images)
    assert first.captions == again.captions
    assert not torch.equal(first.images, other.images)


def test_glyph_batches_are_images_with_matching_captions(masks):
    batch = sample_glyphs(masks, 64, rng(), letter_share=0.5)
    assert batch.images.shape == (64, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert -1 <= batch.images.min() < batch.images.max() <= 1
    assert all(subject in caption for subject, caption in zip(batch.subjects, batch.captions, strict=True))
    assert set(batch.captions) <= set(all_captions())


def test_letter_share_decides_the_classes(masks):
    assert set(sample_glyphs(masks, 64, rng(), letter_share=0).subjects) <= set(DIGIT_NAMES)
    assert not set(sample_glyphs(masks, 64, rng(), letter_share=1).subjects) & set(DIGIT_NAMES)


def test_handwriting_and_unreadable_faces_are_refused_by_name(faces):
    refused = [("Z003", "Medium Italic"), ("Romande ADF Script", "Italic"), ("Lato", "Hairline")]
    names = [Face(path=Path("face.otf"), family=family, style=style) for family, style in refused]
    assert choose_faces([*names, *faces]) == faces


def test_rendering_needs_a_usable_face():
    with pytest.raises(ValueError, match="none of 0 faces"):
        render_faces([])


def test_tokenizer_learns_the_captions_and_ends_with_its_largest_id():
    tokenizer = build_tokenizer(all_captions(), 10_000)
    ids = tokenizer(TEMPLATE.format("digit seven")).input_ids
    assert len(ids) == 2 + 6
    assert ids[-1] == tokenizer.eos_token_id == len(tokenizer) - 1


@pytest.mark.parametrize("text", ["a photo of a digit seven", "a photo of a golden retriever"])
def test_both_tokenizers_round_trip_and_pad_alike(pipeline, clip, text):
    ids = pipeline.tokenizer(text, padding="max_length", truncation=True).input_ids
    assert pipeline.tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    assert len(ids) == TEXT_POSITIONS
    assert clip[2]([text]).tolist() == [ids]


def test_a_clips_text_tower_becomes_a_pipelines_text_encoder(clip):
    model, _, _ = clip
    tokenizer = build_tokenizer(all_captions(), 10_000)
    ids = tokenize(tokenizer, class_prompts()[:3])
    with torch.inference_mode():
        pooled = text_encoder_of(model, tokenizer).eval()(ids).last_hidden_state[range(3), ids.argmax(dim=1)]
        assert torch.allclose(pooled @ model.text_projection, model.encode_text(ids), atol=1e-5)


def test_class_prompts_are_all_distinct_tokens(clip):
    assert len(clip[2](class_prompts()).unique(dim=0)) == len(CLASS_NAMES)


def test_vae_round_trips_a_glyph(pipeline, masks):
    images = sample_glyphs(masks, 32, rng(), letter_share=0.3).images
    assert psnr(pipeline.vae, images) > 20


def test_pipeline_draws_an_image(pipeline):
    image = pipeline(
        TEMPLATE.format("digit seven"),
        num_inference_steps=4,
        guidance_scale=2.0,
        height=IMAGE_SIZE,
        width=IMAGE_SIZE,
        generator=rng(),
        output_type="pt",
    ).images[0]
    assert image.shape == (3, IMAGE_SIZE, IMAGE_SIZE)
    assert image.std() > 0.05


def test_clip_tells_printed_digits_apart(clip, pipeline, masks):
    assert accuracy(clip[0], pipeline.tokenizer, sample_glyphs(masks, 2000, rng(), letter_share=0)) > 0.8


def test_clip_preprocessing_gives_the_range_of_training(clip, masks):
    image = sample_glyphs(masks, 1, rng(), letter_share=0).images[0]
    pixels = image.add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
    assert torch.allclose(clip[1](Image.fromarray(pixels)), image, atol=0.01)


def train_denoiser(vae, tokenizer, sample, *, steps=2, checkpoint=None):
    knobs = {"batch_size": 4, "cached_images": 256, "renew_every": 2, "seed": 0, "checkpoint": checkpoint}
    return train_unet(vae, partial(build_text_encoder, tokenizer), tokenizer, sample, steps=steps, **knobs)


def test_every_stage_trains_from_scratch(masks, monkeypatch):
    monkeypatch.setattr(train_vae_module, "CALIBRATION_IMAGES", 8)
    monkeypatch.setattr(train_vae_module, "VALIDATION_IMAGES", 8)
    monkeypatch.setattr(train_clip_module, "VALIDATION_IMAGES", 8)
    tokenizer = build_tokenizer(all_captions(), 10_000)
    sample = partial(sample_glyphs, masks, letter_share=0.5)
    vae, vae_record = train_vae(sample, sample, steps=2, seed=0)
    _, clip_record = train_clip(sample, sample, tokenizer, steps=2, batch_size=8, seed=0)
    modules, unet_record = train_denoiser(vae, tokenizer, sample)
    assert set(modules) == {"unet", "text_encoder"}
    assert [len(record.loss) for record in (vae_record, clip_record, unet_record)] == [2, 2, 2]


def test_the_denoiser_goes_on_from_its_checkpoint(masks, tmp_path, monkeypatch):
    monkeypatch.setattr(train_unet_module, "CHECKPOINT_EVERY", 2)
    tokenizer = build_tokenizer(all_captions(), 10_000)
    sample = partial(sample_glyphs, masks, letter_share=0.5)
    steps = []

    def killed_after_three(n, rng):
        steps.append(n)
        if len(steps) == 3:  # one fills the cache, and every second step takes another
            raise KeyboardInterrupt
        return sample(n, rng)

    whole = {"checkpoint": tmp_path / "unet.pt", "steps": 4}
    with pytest.raises(KeyboardInterrupt):
        train_denoiser(build_vae(), tokenizer, killed_after_three, **whole)
    _, record = train_denoiser(build_vae(), tokenizer, sample, **whole)
    assert [step for step, _ in record.loss] == [1, 2, 3, 4]
    # A finished one trains no step more.
    assert train_denoiser(build_vae(), tokenizer, sample, **whole)[1].loss == record.loss
