"""A photo is the picture that a viewer shows, whatever container and mode it comes in."""

from __future__ import annotations

import io
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image, ImageCms

from datadream.classify.predictor import _open
from datadream.data.datasets import open_source
from datadream.data.decode import decode_photo

TURNED = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180}
"""By EXIF orientation: how a camera held so saves what it sees."""


def picture() -> Image.Image:
    """Wide, smooth and different in each corner."""
    x, y = np.meshgrid(np.linspace(0, 1, 64), np.linspace(0, 1, 48))
    return Image.fromarray((np.stack([x, y, 1 - x], axis=2) * 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def difference(data: bytes, expected: Image.Image, name: str = "x") -> float:
    found = decode_photo(data, name)
    assert (found.mode, found.size) == ("RGB", expected.size)
    return float(np.abs(np.asarray(found, float) - np.asarray(expected.convert("RGB"), float)).max())


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG", "AVIF"])
def test_any_container_holds_the_same_picture(kind):
    exact = kind in ("PNG", "BMP", "TIFF", "WEBP")
    options = {"lossless": True} if kind == "WEBP" else {"quality": 98} if kind in ("JPEG", "AVIF") else {}
    assert difference(encoded(picture(), kind, **options), picture()) <= (0 if exact else 40)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_camera_that_was_held_sideways(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture().transpose(TURNED[orientation]), kind, exif=exif)
    assert difference(data, picture()) < 30


@pytest.mark.parametrize("odd", [{0x0100: -1}, {0x0128: "inch"}, {0x011A: "72"}])
def test_odd_exif_of_a_photo_that_is_whole(odd):
    """Pillow reads such tags but cannot write them: a width below 0, a unit and a resolution in words."""
    exif, data = bytearray(b"Exif\0\0II*\0\x08\0\0\0\x02\0"), b""
    (tag, value), at = next(iter(odd.items())), 8 + 2 + 2 * 12 + 4
    entries = [(0x0112, 3, 1, (6).to_bytes(4, "little"))]
    if isinstance(value, int):
        entries.append((tag, 9, 1, value.to_bytes(4, "little", signed=True)))
    else:
        data = value.encode() + b"\0"
        entries.append((tag, 2, len(data), data.ljust(4, b"\0") if len(data) <= 4 else at.to_bytes(4, "little")))
    for number, kind, count, field in sorted(entries):
        exif += number.to_bytes(2, "little") + kind.to_bytes(2, "little") + count.to_bytes(4, "little") + field
    exif += bytes(4) + (data if len(data) > 4 else b"")
    photo = encoded(picture().transpose(TURNED[6]), "JPEG", exif=bytes(exif))
    assert difference(photo, picture()) < 30


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits(kind):
    grey = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    expected = Image.fromarray((grey / 257).round().astype(np.uint8))
    assert difference(encoded(Image.fromarray(grey), kind), expected) == 0


@pytest.mark.parametrize("white", [1, 255])
def test_floats(white):
    grey = np.linspace(0, white, 64 * 48, dtype=np.float32).reshape(48, 64)
    expected = Image.fromarray((grey / white * 255).round().astype(np.uint8))
    assert difference(encoded(Image.fromarray(grey), "TIFF"), expected) == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_lies_under_transparent_pixels_is_not_seen(mode):
    """A logo saved from a drawing program has any colour there, here green."""
    hidden = Image.new("RGBA", (20, 10), (0, 255, 0, 0))
    hidden.paste((200, 0, 0, 255), (0, 0, 10, 10))
    expected = Image.new("RGB", (20, 10), "white")
    expected.paste((200, 0, 0), (0, 0, 10, 10))
    data = encoded(hidden.convert(mode) if mode != "P" else hidden.quantize(4), "PNG")
    if mode == "LA":
        expected = expected.convert("L").convert("RGB")
    assert difference(data, expected) <= 2
    assert decode_photo(data, "x", background="black").getpixel((19, 9)) == (0, 0, 0)


def test_print_colours_follow_their_kind():
    white, black = (Image.new("CMYK", (8, 8), ink) for ink in ((0, 0, 0, 0), (0, 0, 0, 255)))
    assert decode_photo(encoded(white, "JPEG"), "x").getpixel((4, 4)) == (255, 255, 255)
    assert max(decode_photo(encoded(black, "JPEG"), "x").getpixel((4, 4))) < 40


def test_a_profile_of_other_colours_is_applied_and_a_broken_one_ignored():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert difference(encoded(picture(), "PNG", icc_profile=lab), picture()) == 0
    assert difference(encoded(picture(), "PNG", icc_profile=b"broken"), picture()) == 0


def swapped_profile() -> bytes:
    """A profile of screens whose red is green: sRGB's, with these two colours' tags exchanged, and another name."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    return profile.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))


def test_a_profile_is_applied_to_colours_and_to_palettes_of_them():
    mostly_red = Image.new("RGB", (8, 8), (200, 10, 20))
    for image in (mostly_red, mostly_red.quantize(4)):
        red, green, _ = decode_photo(encoded(image, "PNG", icc_profile=swapped_profile()), "x").getpixel((4, 4))
        assert green > 150 > red


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_picture(kind):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert difference(data, frames[0]) < 10


def damaged_avif() -> bytes:
    """Its header is whole and its pixels are not."""
    data = bytearray(encoded(picture(), "AVIF"))
    start = data.index(b"mdat") + 4
    data[start:] = bytes(255 - byte for byte in data[start:])
    return bytes(data)


BOMB = encoded(Image.new("1", (20_000, 10_000)), "PNG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "'a/x.jpg' is empty"),
        (b"<html>not found</html>", r"'a/x.jpg' cannot be decoded \(no known image format\)"),
        (encoded(picture(), "JPEG")[:-400], "'a/x.jpg' cannot be decoded"),
        (damaged_avif(), "'a/x.jpg' cannot be decoded"),
        (encoded(Image.new("L", (8000, 20)), "PNG"), "'a/x.jpg' cannot be decoded .it is a strip of 8000 x 20 pixels"),
        (BOMB, "'a/x.jpg' has more than 178 million pixels. Resize or remove it"),
    ],
)
def test_what_cannot_be_shown_is_named_with_the_reason(data, reason):
    with pytest.raises(ValueError, match=reason):
        decode_photo(data, "a/x.jpg")


def test_heic_names_its_plugin_where_that_is_missing():
    if find_spec("pillow_heif"):
        pytest.skip("pillow-heif is installed")
    with pytest.raises(ValueError, match="'x.HEIC' is HEIC, which needs a plugin: pip install pillow-heif"):
        decode_photo(b"ftypheic", "x.HEIC")


def test_shots_test_photos_and_photos_to_predict_are_decoded_alike(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        picture().transpose(Image.Transpose.ROTATE_90).save(tmp_path / name / "x.jpg", exif=exif)
    shot = open_source(str(tmp_path)).read("a/x.jpg")
    given = [_open(tmp_path / "a" / "x.jpg"), _open(Image.open(tmp_path / "a" / "x.jpg"))]
    assert all(np.array_equal(np.asarray(shot), np.asarray(image)) for image in given)
    assert shot.size == picture().size


def test_every_reader_of_a_run_shows_its_background(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGBA", (20, 10), (0, 255, 0, 0)).save(tmp_path / name / "x.png")
    source, path = open_source(str(tmp_path), "#102030"), tmp_path / "a" / "x.png"
    shown = [source.read("a/x.png"), _open(path, "#102030"), _open(Image.open(path), "#102030")]
    assert [image.getpixel((4, 4)) for image in shown] == [(16, 32, 48)] * 3
