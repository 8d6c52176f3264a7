"""Named drawings of free icon sets, out of the npm package @iconify/json, as masks and coloured pictures.

Drawings need resvg (`pip install resvg-py`), which is no dependency of this package: pre-training alone draws.
"""

import io
import json
import random
import re
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from datadream.data.decode import IMAGE_SUFFIXES
from datadream.data.image_folder import is_litter
from datadream.models.tiny.painting import EXTENT, MASK_SIZE

FREE = {
    "Apache-2.0",
    "BSD-3-Clause",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MPL-2.0",
    "OFL-1.1",
    "Unlicense",
}
"""Licences whose drawings may be learnt from, by SPDX names: none with a share-alike or non-commercial clause."""
# Emoji stay unseen, for what is measured on them; the others are trade marks or the icons of file types.
UNFIT_CATEGORIES = {"Emoji", "Logos", "Programming"}
# Country flags, and animations that show nothing at rest.
UNFIT = {"circle-flags", "cif", "dinkie-icons", "flag", "flagpack", "svg-spinners"}
HELD_OUT = {
    # Those that benchmarks/effect measures on,
    *("akar-icons", "bi", "bx", "carbon", "feather", "gg", "iconoir", "ion", "jam", "lucide", "mdi", "octicon", "ph"),
    *("tabler", "typcn", "uil", "emojione", "emojione-monotone", "emojione-v1", "fluent-emoji", "fluent-emoji-flat"),
    *("fluent-emoji-high-contrast", "fxemoji", "noto", "noto-v1", "openmoji", "streamline-emojis", "twemoji"),
    # and their kin.
    *("boxicons", "bxl", "bxs", "famicons", "lucide-lab", "mdi-light", "uim", "uis", "uit"),
}
# Of an icon's name, what says how it is drawn and not what it is.
STYLES = {
    *("outline", "outlined", "filled", "fill", "bold", "thin", "light", "regular", "solid", "duotone", "duo", "tone"),
    *("twotone", "two", "line", "linear", "broken", "sharp", "rounded", "round", "baseline", "variant", "alt"),
    "color",
}
# A name is kept that so many sets have; rarer ones say too little for a network of this size.
MIN_SETS = 4
MAX_WORDS = 4
# Of one name: of a set, and of all sets that are drawn in one colour.
MAX_OF_A_SET = 3
MAX_OF_A_NAME = 40
RENDERED = 96
# One set in this many is kept out of training, to measure on.
HELD_OUT_SHARE = 20
MIN_SIDE = 8
# Correlation of 16x16 grids from which two drawings are taken for one.
ALIKE = 0.95
ALIKE_GRID = 16


@dataclass(kw_only=True)
class Drawings:
    """What was drawn: `masks` [n, 64, 64] uint8 of those in one colour, `pictures` [m, 4, 64, 64] uint8 of the others
    (red, green and blue times opacity, opacity), and their names."""

    masks: Tensor
    mask_names: list[str]
    pictures: Tensor
    picture_names: list[str]
    sets: list[dict[str, Any]] = field(default_factory=list)
    """Each icon set that was taken: its name, title, author, licence and number of drawings."""


def subject_of(name: str) -> str:
    """What an icon of this name shows, such as "arrow down": its words without numbers and styles. Empty where they do
    not say it, as of a crossed-out bell ("bell-off") and of a letter ("letter-a")."""
    words = [re.sub(r"\d+$", "", word) for word in re.split(r"[-_]+", name)]
    if "off" in words or any(len(word) == 1 and word != "o" for word in words):
        return ""
    return " ".join(word for word in words if len(word) > 1 and word not in STYLES)


def draw(collection: Mapping[str, Any], name: str, longer: int) -> Image.Image:
    """An icon of an Iconify collection in RGBA, its longer side so many pixels; ValueError where it is no SVG."""
    from resvg_py import svg_to_bytes

    icon = collection["icons"][name]
    # A drawing's own box, or that of its set, or the format's.
    box = {"left": 0, "top": 0, "width": 16, "height": 16} | {
        side: source[side]
        for source in (collection, icon)
        for side in ("left", "top", "width", "height")
        if side in source
    }
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box["left"]} {box["top"]} {box["width"]} {box["height"]}">'
        f"{icon['body']}</svg>"
    )
    width, height = (longer, None) if box["width"] >= box["height"] else (None, longer)
    return Image.open(io.BytesIO(bytes(svg_to_bytes(svg_string=svg, width=width, height=height)))).convert("RGBA")


def read_drawings(archive: Path, unlike: Iterable[Path] = ()) -> tuple[Drawings, Drawings]:
    """Draw the icons of @iconify/json's .tgz that are free, in no benchmark and of a name that several sets share, but
    those that look like a picture below the folders `unlike`. Returns what to learn from, and what is held out."""
    # First, because one that cannot be read ends it.
    paths = [path for folder in unlike for path in sorted(folder.rglob("*")) if _is_photo(path)]
    refused = [ink for path in paths if (ink := ink_of(path)) is not None]
    with TemporaryDirectory() as folder:
        with tarfile.open(archive) as package:
            package.extractall(folder, filter="data")
        root = Path(folder, "package")
        about = json.loads((root / "collections.json").read_text())
        chosen = chosen_icons({name: _icons(root, name) for name in about if _is_fit(name, about[name])}, about)
        with ProcessPoolExecutor() as pool:
            drawn = list(
                pool.map(_draw_set, repeat(root), chosen, chosen.values(), map(_in_colors, repeat(about), chosen))
            )
    found = [(name, *each) for name, made in zip(chosen, drawn, strict=True) for each in made]
    inks = [pixels if pixels.ndim == 2 else pixels[..., 3] for *_, pixels in found]
    is_new = _is_new(torch.from_numpy(np.stack(inks)), refused).tolist()
    found = [each for each, new in zip(found, is_new, strict=True) if new]
    learnt, held_out = ([each for each in found if _is_held_out(each[0]) == kind] for kind in (False, True))
    return _drawings(learnt, about), _drawings(held_out, about)


def chosen_icons(icons: Mapping[str, Sequence[str]], about: Mapping[str, Any]) -> dict[str, list[str]]:
    """Of each set, the names of the icons to draw; `icons` has all names of each set."""
    by_subject: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for set_name, names in icons.items():
        for name in names:
            by_subject[subject_of(name)].setdefault(set_name, []).append(name)
    order = random.Random(0)
    chosen: dict[str, list[str]] = defaultdict(list)
    for subject in sorted(by_subject):
        found = by_subject[subject]
        if len(found) < MIN_SETS or not subject or len(subject.split()) > MAX_WORDS:
            continue
        pairs = [(set_name, name) for set_name in found for name in found[set_name][:MAX_OF_A_SET]]
        plain = [pair for pair in pairs if not _in_colors(about, pair[0])]
        order.shuffle(plain)
        for set_name, name in [pair for pair in pairs if _in_colors(about, pair[0])] + plain[:MAX_OF_A_NAME]:
            chosen[set_name].append(name)
    return {name: chosen[name] for name in sorted(chosen)}


def ink_of(path: Path) -> np.ndarray[Any, Any] | None:
    """What a picture shows as a mask [64, 64], fitted as drawings are; None of a picture of one colour."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    opacity = np.asarray(image.getchannel("A"))
    if opacity.min() == 255:
        # Without a transparent ground, what differs from the corner.
        gray = np.asarray(image.convert("L")).astype(int)
        opacity = np.abs(gray - gray[0, 0]).astype(np.uint8)
    if not (opacity > 20).any():
        return None
    rows, columns = np.where(opacity > 20)
    return _fitted(Image.fromarray(opacity[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]))


def _drawings(found: Sequence[tuple[str, str, np.ndarray[Any, Any]]], about: Mapping[str, Any]) -> Drawings:
    """Of triples of a set, a subject and its pixels."""
    plain, colored = ([each for each in found if _in_colors(about, each[0]) == kind] for kind in (False, True))
    masks, pictures = ([torch.from_numpy(pixels) for *_, pixels in kind] for kind in (plain, colored))
    counts = Counter(name for name, *_ in found)
    return Drawings(
        masks=torch.stack(masks) if masks else torch.empty(0, MASK_SIZE, MASK_SIZE, dtype=torch.uint8),
        mask_names=[subject for _, subject, _ in plain],
        pictures=(
            torch.stack(pictures) if pictures else torch.empty(0, MASK_SIZE, MASK_SIZE, 4, dtype=torch.uint8)
        ).permute(0, 3, 1, 2),
        picture_names=[subject for _, subject, _ in colored],
        sets=[
            {
                "name": name,
                "title": about[name]["name"],
                "author": about[name]["author"]["name"],
                "licence": about[name]["license"]["spdx"],
                "drawings": counts[name],
            }
            for name in counts
        ],
    )


def _icons(root: Path, name: str) -> list[str]:
    return list(json.loads((root / "json" / f"{name}.json").read_text())["icons"])


def _is_fit(name: str, about: Mapping[str, Any]) -> bool:
    is_free = about["license"].get("spdx") in FREE
    return is_free and name not in HELD_OUT | UNFIT and about.get("category") not in UNFIT_CATEGORIES


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_litter(path.name) and path.is_file()


def _is_held_out(name: str) -> bool:
    return zlib.crc32(name.encode()) % HELD_OUT_SHARE == 0


def _in_colors(about: Mapping[str, Any], name: str) -> bool:
    return bool(about[name].get("palette"))


def _draw_set(
    root: Path, set_name: str, names: Sequence[str], colored: bool
) -> list[tuple[str, np.ndarray[Any, Any]]]:
    collection = json.loads((root / "json" / f"{set_name}.json").read_text())
    made = []
    for name in names:
        try:
            picture = draw(collection, name, RENDERED)
        except ValueError:
            continue  # some bodies hold what resvg cannot read
        box = picture.getchannel("A").getbbox()
        if box is None or min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE:
            continue
        picture = picture.crop(box)
        fitted = _fitted(picture if colored else picture.getchannel("A"))
        if colored:
            # Pillow resizes colours by their opacity and gives them back whole: they are multiplied by it at the end.
            inks = fitted[..., :3] * (fitted[..., 3:].astype(np.float32) / 255)
            fitted = np.concatenate([inks.round().astype(np.uint8), fitted[..., 3:]], axis=-1)
        made.append((subject_of(name), fitted))
    return made


def _fitted(picture: Image.Image) -> np.ndarray[Any, Any]:
    """The picture with its longer side at EXTENT, in the middle of an empty square of MASK_SIZE."""
    scale = EXTENT / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    square = Image.new(picture.mode, (MASK_SIZE, MASK_SIZE))
    place = ((MASK_SIZE - width) // 2, (MASK_SIZE - height) // 2)
    square.paste(picture.resize((width, height), Image.Resampling.BOX), place)
    return np.asarray(square)


def _is_new(shapes: Tensor, refused: Sequence[np.ndarray[Any, Any]]) -> Tensor:
    """Whether each of shapes [n, 64, 64] is unlike all that are refused."""
    if not refused:
        return torch.ones(len(shapes), dtype=torch.bool)
    known = _grids(torch.from_numpy(np.stack(refused))).T
    # In parts: 70,000 drawings beside 10,000 photos are 2.8 GB.
    return torch.cat([(part @ known).amax(dim=1) <= ALIKE for part in _grids(shapes).split(1024)])


def _grids(shapes: Tensor) -> Tensor:
    """Shapes [n, 64, 64] as coarse grids [n, 256] whose products are correlations."""
    grids = F.interpolate(shapes[:, None].float(), size=ALIKE_GRID, mode="area").flatten(1)
    grids = grids - grids.mean(dim=1, keepdim=True)
    return grids / grids.norm(dim=1, keepdim=True).clamp(min=1e-6)
