"""Augmentation: nothing when all is off, and each image's own parameters when it is on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from datadream.config import AugmentConfig
from datadream.data.augment import Augment, _turn_hue

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
OFF = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "rotation": 0, "color_jitter": 0, "grayscale": 0}


def augment(flip: bool = False, size: int = 16, **changes) -> Augment:
    return Augment(AugmentConfig(**{**OFF, **changes}), flip, size, MEAN, STD)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (64, 3, 16, 16), dtype=torch.uint8, generator=rng(5))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normalised(images: Tensor) -> Tensor:
    return (images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def pixels(augmented: Tensor) -> Tensor:
    """Undo the normalisation."""
    return augmented * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


def test_with_all_off_images_are_only_normalised(images):
    torch.testing.assert_close(augment()(images, rng()), normalised(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [8, 24])
def test_with_all_off_images_are_resized_bilinearly(images, size):
    resized = F.interpolate(images.float(), size=(size, size), mode="bilinear", align_corners=False)
    torch.testing.assert_close(augment(size=size)(images, rng()), normalised(resized), atol=1e-4, rtol=0)


def test_the_generator_decides_everything(images):
    every = augment(flip=True, crop_scale=(0.3, 1), crop_ratio=(0.5, 2), rotation=30, color_jitter=0.4, grayscale=0.2)
    first, again, other = (every(images, rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).all()


def test_every_image_has_its_own_parameters():
    same = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8, generator=rng(5)).repeat(32, 1, 1, 1)
    every = augment(flip=True, crop_scale=(0.3, 1), rotation=30, color_jitter=0.4)
    assert len(every(same, rng()).flatten(1).unique(dim=0)) == 32


def test_an_image_does_not_depend_on_its_batch(images):
    every = augment(flip=True, crop_scale=(0.3, 1), crop_ratio=(0.5, 2), rotation=30, color_jitter=0.4, grayscale=0.2)
    numbers = every.draw(len(images), rng())
    torch.testing.assert_close(every.apply(images, numbers)[20:30], every.apply(images[20:30], numbers[20:30]))


def test_flip_mirrors_about_half_of_the_images(images):
    result, plain = augment(flip=True)(images, rng()), normalised(images)
    mirrored = torch.isclose(result, plain.flip(3), atol=1e-4).flatten(1).all(dim=1)
    kept = torch.isclose(result, plain, atol=1e-4).flatten(1).all(dim=1)
    assert bool((mirrored ^ kept).all())
    assert 16 <= int(mirrored.sum()) <= 48


def test_rotation_stays_within_its_range():
    """A dot right of the centre moves by its angle on a circle."""
    dot = torch.zeros(64, 3, 33, 33, dtype=torch.uint8)
    dot[:, :, 15:18, 23:26] = 255
    result = pixels(augment(size=33, rotation=40)(dot, rng()))[:, 0]
    axis = torch.arange(33) - 16.0
    x, y = ((result * weights).sum((1, 2)) / result.sum((1, 2)) for weights in (axis, axis[:, None]))
    angles = torch.rad2deg(torch.atan2(y, x))
    torch.testing.assert_close(x.hypot(y), torch.full((64,), 8.0), atol=0.3, rtol=0)
    assert angles.abs().max() <= 41
    assert angles.min() < -25
    assert angles.max() > 25


def test_crops_show_the_share_of_the_image_that_was_asked_for():
    """On a ramp, the range of levels is the crop's width."""
    ramp = torch.linspace(0, 255, 64).to(torch.uint8).expand(32, 3, 64, 64)
    result = pixels(augment(size=64, crop_scale=(0.25, 0.25))(ramp, rng()))[:, 0, 32]
    widths = result.amax(dim=1) - result.amin(dim=1)
    torch.testing.assert_close(widths, torch.full((32,), 0.5), atol=0.03, rtol=0)
    assert result.amin(dim=1).std() > 0.05


@pytest.mark.parametrize("landscape", [True, False])
def test_crops_of_a_long_photo_reach_all_of_it_and_keep_their_ratio(landscape):
    """On a ramp along the long side, the range of levels is the crop's length."""
    ramp = torch.linspace(0, 255, 96).to(torch.uint8).expand(3, 32, 96)
    ramp = ramp if landscape else ramp.transpose(1, 2)
    for ratio in ((1.0, 1.0), (0.75, 4 / 3)):
        result = pixels(augment(crop_scale=(0.2, 1.0), crop_ratio=ratio)([ramp] * 256, rng()))[:, 0]
        levels = result[:, 8] if landscape else result[:, :, 8]
        length = (levels.amax(dim=1) - levels.amin(dim=1)) * 16 / 15  # from centre to centre of the outer pixels
        longest = max(ratio) * 32 / 96
        assert longest - 0.05 < length.max() <= longest + 0.02
        assert levels.min() < 0.05
        assert levels.max() > 0.95


def test_a_rotated_long_photo_is_not_sheared():
    """A disc stays a disc."""
    y, x = torch.meshgrid(torch.arange(48) - 23.5, torch.arange(96) - 47.5, indexing="ij")
    disc = ((x.hypot(y) < 12) * 255).to(torch.uint8).expand(3, 48, 96)
    turned = augment(size=48, rotation=180, crop_scale=(1, 1)).apply([disc] * 16, torch.rand(16, 10, generator=rng()))
    found = [(result > 0.5).nonzero().float() for result in pixels(turned)[:, 0]]
    inside = [each for each in found if len(each) and each.min() > 0 and each.max() < 47]
    assert len(inside) > 3
    for each in inside:
        assert abs(each[:, 0].std() - each[:, 1].std()) < 0.3


def test_photos_of_many_sizes_are_changed_as_each_alone(images):
    photos = [torch.randint(256, (3, *shape), dtype=torch.uint8, generator=rng(1)) for shape in ((16, 20), (30, 16))]
    mixed = [photos[0], images[0], photos[1], photos[0], images[1]]
    every = augment(flip=True, crop_scale=(0.3, 1), rotation=30, color_jitter=0.4, blur=0.5, rand_augment=2)
    numbers = every.draw(len(mixed), rng())
    alone = [every.apply([image], numbers[[row]]) for row, image in enumerate(mixed)]
    torch.testing.assert_close(every.apply(mixed, numbers), torch.cat(alone))
    assert torch.equal(every.apply(list(images), every.draw(64, rng())), every.apply(images, every.draw(64, rng())))
    assert every.apply([], numbers[:0]).shape == (0, 3, 16, 16)


def test_fine_detail_of_a_large_photo_is_averaged_and_not_skipped():
    stripes = (torch.arange(36) % 2 * 255).to(torch.uint8).expand(3, 36, 36)
    result = pixels(augment(size=16)([stripes], rng()))
    assert (result - 0.5).abs().max() < 0.3
    assert (result.mean() - 0.5).abs() < 0.02


def test_grayscale_leaves_no_colour(images):
    grey = pixels(augment(grayscale=1)(images, rng()))
    torch.testing.assert_close(grey[:, 0], grey[:, 1])
    expected = torch.einsum("nchw,c->nhw", images.float() / 255, torch.tensor([0.299, 0.587, 0.114]))
    torch.testing.assert_close(grey[:, 0], expected, atol=1e-3, rtol=0)


def test_jitter_changes_brightness_within_its_range():
    flat = torch.full((256, 3, 4, 4), 128, dtype=torch.uint8)
    levels = pixels(augment(size=4, color_jitter=0.5)(flat, rng()))[:, 0, 0, 0] / (128 / 255)
    assert 0.5 <= levels.min() < 0.6
    assert 1.4 < levels.max() <= 1.5


def test_blur_and_solarisation_change_their_share_of_the_images(images):
    numbers = augment(blur=0.5, solarize=0.5, size=224).draw(64, rng())
    changed = pixels(augment(blur=0.5, size=16).apply(images, numbers))
    plain = pixels(normalised(images))
    blurred = numbers[:, 10] < 0.5
    torch.testing.assert_close(changed[~blurred], plain[~blurred], atol=1e-4, rtol=0)
    inverted = numbers[:, 12] < 0.5
    solarised = pixels(augment(solarize=0.5).apply(images, numbers))
    torch.testing.assert_close(solarised[~inverted], plain[~inverted], atol=1e-4, rtol=0)
    expected = torch.where(plain >= 0.5, 1 - plain, plain)[inverted]
    assert ((solarised[inverted] - expected).abs() < 1e-4).float().mean() > 0.99, "but for levels at the threshold"
    assert 16 < blurred.sum() < 48
    assert 16 < inverted.sum() < 48


def test_each_image_is_blurred_as_torchvision_blurs_it_alone():
    photos = torch.randint(256, (6, 3, 224, 224), dtype=torch.uint8, generator=rng(1))
    every = augment(size=224, blur=1)
    numbers = every.draw(6, rng())
    blurred = pixels(every.apply(photos, numbers))
    for photo, result, number in zip(photos, blurred, numbers[:, 11], strict=True):
        sigma = 0.1 + 1.9 * number.item()
        expected = tv.gaussian_blur(photo.float() / 255, [13, 13], [sigma, sigma])
        torch.testing.assert_close(result, expected, atol=1e-3, rtol=0)


def test_what_is_off_does_not_move_what_is_on(images):
    every = {"crop_scale": (0.3, 1), "crop_ratio": (0.5, 2), "rotation": 30, "color_jitter": 0.4, "grayscale": 0.2}
    numbers = augment(**every, rand_augment=2, blur=0.2).draw(64, rng())
    assert augment(**every).n_numbers == 10
    torch.testing.assert_close(
        augment(**every).apply(images, numbers[:, :10]), augment(**every).apply(images, numbers), atol=0, rtol=0
    )


def test_an_image_with_everything_on_does_not_depend_on_its_batch(images):
    every = augment(crop_scale=(0.3, 1), rotation=30, color_jitter=0.4, blur=0.5, solarize=0.5, rand_augment=2)
    numbers = every.draw(len(images), rng())
    torch.testing.assert_close(every.apply(images, numbers)[20:30], every.apply(images[20:30], numbers[20:30]))


def test_a_turn_of_the_hue_is_torchvisions(images):
    """One turn for all: a range of a single value."""
    colors = images.float() / 255
    colors[:, :, :4] = colors[:, :1, :4]  # grey, which has no hue
    for turn in (-0.5, -0.1, 0.0, 0.07, 0.5):
        ours = _turn_hue(colors, torch.full((64, 1, 1, 1), turn))
        torch.testing.assert_close(ours, tv.adjust_hue(colors, turn), atol=1e-4, rtol=0)


def test_the_share_of_images_whose_colours_change_and_their_ranges(images):
    some = augment(color_jitter=0.4, saturation_jitter=0.2, hue_jitter=0.1, jitter_share=0.8)
    many = images.repeat(8, 1, 1, 1)
    same = torch.isclose(some(many, rng()), normalised(many), atol=1e-4).flatten(1).all(dim=1)
    assert 0.14 < same.float().mean() < 0.26
    # A red pixel whose brightness and contrast do not change keeps its red; saturation takes its green up to a fifth.
    red = torch.zeros(256, 3, 16, 16, dtype=torch.uint8)
    red[:, 0] = 200
    of_saturation = augment(saturation_jitter=0.2)
    numbers = of_saturation.draw(256, rng())
    green = pixels(of_saturation.apply(red, numbers))[:, 1, 0, 0]
    grey = 200 / 255 * 0.299
    torch.testing.assert_close(green, ((1 - (0.8 + 0.4 * numbers[:, 8])) * grey).clamp(min=0), atol=1e-4, rtol=0)


def test_what_is_off_moves_no_other_random_number(images):
    plain, numbers = augment(color_jitter=0.4, rand_augment=2, blur=0.3), rng()
    widest = augment(color_jitter=0.4, rand_augment=2, blur=0.3, jitter_share=0.99999, hue_jitter=0.0)
    drawn = plain.draw(64, numbers)
    assert drawn.shape == (64, 17)
    wider = torch.cat([drawn[:, :13], torch.zeros(64, 2), drawn[:, 13:]], dim=1)
    torch.testing.assert_close(widest.apply(images, wider), plain.apply(images, drawn))


def test_bicubic_crops_are_sharper_than_bilinear_ones_and_stay_in_range():
    stripes = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    stripes[..., ::4] = stripes[..., 1::4] = 255
    soft, sharp = (pixels(augment(size=40, interpolation=mode)(stripes, rng())) for mode in ("bilinear", "bicubic"))
    assert sharp.std() > soft.std()
    assert sharp.min() > -1e-5
    assert sharp.max() < 1 + 1e-5
    expected = F.interpolate(stripes.float() / 255, size=(40, 40), mode="bicubic", align_corners=False).clamp(0, 1)
    torch.testing.assert_close(sharp[..., 4:-4, 4:-4], expected[..., 4:-4, 4:-4], atol=2e-3, rtol=0)
