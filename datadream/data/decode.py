"""Encoded photos to pixels, as a viewer shows them: the one decoder of shots, test photos and photos to predict.

Without torch: Ray Data's tasks import this, and torch would take them seconds.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec

import numpy as np
from PIL import ExifTags, Image, ImageCms

from datadream.config import WHITE

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a photo upright, by the orientation in its EXIF; 1 is upright."""
MOST_ASPECT = 50
"""Longer photos are refused: resized for training, a strip of 8000 x 20 pixels would become 200,000 pixels wide."""
HEIF_SUFFIXES = (".heic", ".heif")
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"),
    *HEIF_SUFFIXES,
)
BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError),
    *(struct.error, ImageCms.PyCMSError),
    RuntimeError,
)
"""What Pillow raises for files that are broken; the last by its AVIF decoder."""

if find_spec("pillow_heif"):
    import pillow_heif

    pillow_heif.register_heif_opener()


def decode_photo(data: bytes, path: str, background: str = WHITE) -> Image.Image:
    """An encoded photo as RGB; raises ValueError naming its path, the reason and the way out.

    `background` is what shows through transparent pixels.
    """
    if not data:
        raise ValueError(f"image {path!r} is empty. Replace or remove it.")
    if path.lower().endswith(HEIF_SUFFIXES) and not find_spec("pillow_heif"):
        raise ValueError(f"image {path!r} is HEIC, which needs a plugin: pip install pillow-heif, or convert it.")
    # Pillow raises SyntaxError for a broken PNG header, OSError for a photo that is cut short, nearly anything for odd
    # EXIF, and an exception of its own kind for one that would fill the memory.
    try:
        with Image.open(io.BytesIO(data)) as image:
            return as_shown(image, background)
    except Image.DecompressionBombError:
        # Pillow only warns from its limit on, and raises from twice as many pixels on.
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"image {path!r} has more than {most} million pixels. Resize or remove it.") from None
    except BROKEN as error:
        # Pillow's own words for a file of no known format name an object in memory.
        words = "no known image format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise ValueError(f"image {path!r} cannot be decoded ({words}). Replace or remove it.") from None


def look_of(image: Image.Image) -> int:
    """A number of 256 bits, whose bits hardly differ for one picture in another size or container.

    Each bit says whether the picture gets brighter from one of 16 x 17 places to the next (Krawetz's dHash).
    """
    grey = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BILINEAR), np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def as_shown(image: Image.Image, background: str = WHITE) -> Image.Image:
    """RGB as a viewer shows it: the first frame, upright, in sRGB, over `background` where it is transparent.

    Raises ValueError for a strip, and what Pillow raises for a photo that is broken.
    """
    if max(image.size) > MOST_ASPECT * min(image.size):
        raise ValueError(f"it is a strip of {image.width} x {image.height} pixels")
    if getattr(image, "n_frames", 1) > 1:
        image.seek(0)
    image.load()  # turns a TIFF itself
    # Not by ImageOps.exif_transpose: it writes all of the EXIF anew, and Pillow 13 raises struct.error or TypeError
    # there for one odd tag, such as a width below 0, of a photo that every viewer shows.
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    # Turned first: the array that 16 bits go through no longer knows the orientation.
    image = _with_eight_bits(image.transpose(TURNS[orientation]) if orientation in TURNS else image)
    profile = image.info.get("icc_profile")  # before the canvas below, which has none
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        # A palette or a grey level may be transparent as well; what lies under it is what a program left there.
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, background)
        canvas.alpha_composite(layer)
        image = canvas.convert("RGB")
    if profile:
        # Photos of phones and of print shops have other colours than screens. A profile that is broken or of other
        # channels is what a viewer would ignore too.
        with suppress(ImageCms.PyCMSError, OSError, ValueError):
            if image.mode == "P":  # its numbers are no colours, of which a profile could tell
                image = image.convert("RGB")
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                shown = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
                return shown if shown is not None else image.convert("RGB")
    return image.convert("RGB")


def _with_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or of floats, as grey of 8: Pillow itself would clip all but the darkest to white."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    levels = np.nan_to_num(np.asarray(image, np.float32))
    top = levels.max(initial=0)
    # Files do not say what their white is. Floats up to 1 and integers of 8 or 16 bits are what people have.
    white = next((known for known in (1.0, 255.0, 65535.0) if top <= known), float(top))
    if image.mode.startswith("I;16"):
        white = 65535.0
    return Image.fromarray((np.clip(levels / white, 0, 1) * 255).round().astype(np.uint8))


def square(image: Image.Image, size: int) -> np.ndarray:
    """uint8 [3, size, size]: the middle square of an image, resized with antialiasing."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    # Cropping and resizing in one call: half a pixel of an odd margin is not lost.
    box = (left, top, left + side, top + side)
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box=box)).transpose(2, 0, 1)


def whole(image: Image.Image, least: int, most: int) -> np.ndarray:
    """uint8 [3, height, width]: a whole image, resized with antialiasing where its short side is not `least` to
    `most` pixels."""
    image, short = image.convert("RGB"), min(image.size)
    side = min(max(short, least), most)
    if side != short:
        width, height = (round(length * side / short) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def decode_squares(encoded: Sequence[bytes], keys: Sequence[str], size: int) -> np.ndarray:
    """`square` of each encoded image, uint8 [n, 3, size, size]; raises ValueError naming one that is broken."""
    squares = np.empty((len(encoded), 3, size, size), np.uint8)
    for row, (data, key) in enumerate(zip(encoded, keys, strict=True)):
        try:
            # Plainly, and not `as_shown`: these are images that this package has encoded, upright and in RGB.
            squares[row] = square(Image.open(io.BytesIO(data)), size)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"image {key!r} of the dataset cannot be decoded: {error}") from None
    return squares
