"""Choose the font faces that the backbones learn from; printed type alone, where handwriting is to stay unseen."""

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageFont

# Fragments of lower-case names of faces that imitate a hand: they would leak the target domain into pre-training.
HANDWRITING_LIKE = "brush|callig|casual|chancery|chorus|comic|cursive|hand|marker|script|typoscript|z003"
# Hands that benchmarks/effect measures on: no backbone learns from them.
HELD_OUT = "because|breip|delphine|dkg|femke|humor|klee|rufscript|seto|stevehand|yusei"
# Of faces whose digits are not plain digits, or too thin to be seen at 32 pixels.
UNREADABLE = (
    "braille|d050000l|dingbat|extralight|hairline|initials|keyboard|math|ornament|outline|symbol|thin|ultralight"
)
# One family in this many is kept out of training, for source accuracy on unseen faces.
VALIDATION_SHARE = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Face:
    """One font file with the names written inside it."""

    path: Path
    family: str
    style: str

    @property
    def name(self) -> str:
        return f"{self.family} {self.style}"

    @property
    def is_validation(self) -> bool:
        """Decided by family alone, so that all weights of one design fall on the same side."""
        return zlib.crc32(self.family.encode()) % VALIDATION_SHARE == 0


def find_faces(font_dirs: Iterable[Path]) -> list[Face]:
    """Every distinct .ttf/.otf face under the folders, sorted by name; one file per (family, style)."""
    by_name: dict[str, Face] = {}
    for path in sorted(path for folder in font_dirs for path in Path(folder).rglob("*")):
        if path.suffix.lower() in (".ttf", ".otf"):
            family, style = ImageFont.truetype(str(path), 16).getname()
            face = Face(path=path, family=family or path.stem, style=style or "Regular")
            by_name.setdefault(face.name, face)
    return [by_name[name] for name in sorted(by_name)]


def choose_faces(faces: Sequence[Face], *, hands: bool = False) -> list[Face]:
    """The faces fit for pre-training, by name; with `hands` also those that imitate one. Rendering may reject more."""
    unfit = re.compile("|".join([HELD_OUT, UNREADABLE, *([] if hands else [HANDWRITING_LIKE])]))
    return [face for face in faces if not unfit.search(f"{face.name} {face.path.stem}".lower())]
