"""Files in which people say something of each class or photo: mappings in YAML or JSON."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import fsspec
import yaml

from datadream.config.unique_keys import UniqueKeys
from datadream.data.listing import one_spelling


class _Texts(UniqueKeys):
    """Leaves scalars the texts that were written, but for null: else the folder 001 is called 1, and no False."""


_Texts.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag.endswith((":null", ":merge"))]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(name for name, _ in pairs)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise yaml.YAMLError(f"{twice[0]!r} is there twice: leave one")
    return dict(pairs)


def read_mapping(knob: str, path: str) -> dict[str, Any]:
    """A file's names, in one spelling, and what it says of each.

    Raises ValueError, which names the knob, where the file cannot be read or is no mapping.
    """
    try:
        fs, place = fsspec.core.url_to_fs(path)
        content = fs.cat_file(place).decode("utf-8-sig")
        try:
            # YAML would make two broken letters of an emoji that JSON escapes.
            found = json.loads(content, object_pairs_hook=_unique)
        except ValueError:
            found = yaml.load(content, Loader=_Texts)  # noqa: S506
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{knob} {path!r} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{knob} {path!r} is no mapping: write lines such as 'name: text' in YAML or JSON.")
    return {one_spelling(str(name)): text for name, text in found.items()}
