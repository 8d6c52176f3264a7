"""What classes are called in prompts and results, from what their folders are called."""

from __future__ import annotations

import re
from collections.abc import Sequence

from datadream.data.listing import one_spelling
from datadream.data.mappings import read_mapping

WORDNET_ID = re.compile(r"n\d{8}")
"""ImageNet's folders."""
TOLD_APART = {"n04008634": "projectile", "n04355933": "sunglass"}
"""WordNet's words for two classes that CLIP's authors call missile and sunglasses, as they do two others."""


def readable_names(folders: Sequence[str], names: str | None) -> tuple[str, ...]:
    """Names of classes: as the file `names` says, of ImageNet's ids as in CLIP's prompts, else the folder's own with
    blanks for underscores.

    Raises ValueError for a file that is no mapping, for a name in it that no folder has, and for equal names.
    """
    told = read_mapping("data.names", names) if names else {}
    if not all(isinstance(name, str) and name for name in told.values()):
        raise ValueError(f"data.names {names!r} holds no names: write lines such as 'folder: name' in YAML or JSON.")
    spelt = [one_spelling(folder) for folder in folders]
    if unknown := sorted(told.keys() - set(spelt)):
        raise ValueError(f"data.names {names!r} names {unknown[0]!r}, which no class folder is called.")
    if any(WORDNET_ID.fullmatch(folder) for folder in folders):
        # open_clip has the names that CLIP's authors wrote, in the order of the classes; it takes seconds to import.
        from open_clip import IMAGENET_CLASSNAMES

        told = dict(zip(imagenet_wordnet(), IMAGENET_CLASSNAMES, strict=True)) | TOLD_APART | told
    found = tuple(told.get(folder) or " ".join(folder.replace("_", " ").split()) for folder in spelt)
    for index, name in enumerate(found):
        if (first := found.index(name)) != index:
            raise ValueError(
                f"class folders {folders[first]!r} and {folders[index]!r} are both called {name!r}. Rename one, or "
                "name them in a file: data.names=names.yaml with lines such as 'folder: name'."
            )
    return found


def imagenet_wordnet() -> dict[str, str]:
    """WordNet's first word for each of ImageNet's 1,000 ids, by label; some have the same."""
    from timm.data import ImageNetInfo  # takes seconds to import, and few need it

    info = ImageNetInfo("imagenet-1k")
    return {name: info.label_name_to_description(name).split(",")[0] for name in info.label_names()}
