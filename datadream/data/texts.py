"""Captions of photos and descriptions of classes: files that people bring, for methods that generate from them."""

from __future__ import annotations

import posixpath
from collections import Counter
from dataclasses import replace
from typing import Any

import fsspec

from datadream.config import DataConfig, nearest
from datadream.data.few_shot import FewShotSet
from datadream.data.listing import one_spelling
from datadream.data.mappings import read_mapping
from datadream.data.photo_list import LIST_SUFFIXES, PATH_COLUMNS, list_entries

CAPTION_COLUMNS = ("caption", "text", "description", "prompt")
"""How people call the column of captions, in any case; of several the first here."""


def with_texts(few_shot: FewShotSet, config: DataConfig) -> FewShotSet:
    """The set with the captions and the descriptions that `data.captions` and `data.descriptions` hold.

    Raises ValueError when a file cannot be read or lacks a shot or a class.
    """
    if config.captions is not None:
        few_shot = replace(few_shot, captions=_captions(config.captions, few_shot))
    if config.descriptions is not None:
        few_shot = replace(few_shot, descriptions=_descriptions(config.descriptions, few_shot.class_names))
    return few_shot


def _captions(path: str, few_shot: FewShotSet) -> dict[str, str]:
    """The caption of every shot, by its key: a file may name photos by their paths or, where one shot alone is called
    so, by the names of their files."""
    keys = [photo.key for photo in few_shot.photos]
    told = _listed_captions(path) if path.lower().endswith(LIST_SUFFIXES) else read_mapping("data.captions", path)
    known = {one_spelling(posixpath.normpath(name)): " ".join(str(text or "").split()) for name, text in told.items()}
    n_called = Counter(one_spelling(posixpath.basename(key)) for key in keys)
    found = {}
    for key in keys:
        name = one_spelling(posixpath.basename(key))
        # Two shots of one name in unlike folders would share what may be the caption of either.
        found[key] = known.get(one_spelling(key)) or (known.get(name, "") if n_called[name] == 1 else "")
    if missing := [key for key in keys if not found[key]]:
        raise ValueError(
            f"data.captions {path!r} lacks the captions of {len(missing)} of {len(keys)} shots, such as "
            f"{missing[0]!r}. Add them, with photos named like this one."
        )
    return found


def _descriptions(path: str, class_names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    told = read_mapping("data.descriptions", path)
    if unknown := sorted(told.keys() - set(map(one_spelling, class_names))):
        hint = nearest(unknown[0], list(class_names))
        raise ValueError(f"data.descriptions {path!r} describes {unknown[0]!r}, which is no class. {hint}".strip())
    found = []
    for name in class_names:
        texts = told.get(one_spelling(name))
        texts = [texts] if isinstance(texts, str) else texts
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(text, str) and text.strip() for text in texts)
        ):
            raise ValueError(
                f"data.descriptions {path!r} has no description of class {name!r}. Give each class a text or a list "
                "of texts, as in 'red fox: [a red fox in snow, a red fox with a white-tipped tail]'."
            )
        found.append(tuple(dict.fromkeys(" ".join(text.split()) for text in texts)))
    return tuple(found)


def _listed_captions(path: str) -> dict[str, Any]:
    told: dict[str, Any] = {}
    try:
        entries = list(list_entries(*fsspec.core.url_to_fs(path)))
    except OSError as error:
        raise ValueError(f"data.captions {path!r} cannot be read: {' '.join(str(error).split())}") from None
    for number, entry in entries:
        photo, caption = (next((c for c in known if c in entry), None) for known in (PATH_COLUMNS, CAPTION_COLUMNS))
        if photo is None or caption is None:
            raise ValueError(
                f"data.captions {path!r}, row {number}: it has the columns {', '.join(entry)}. Call those of photos "
                f"and captions {PATH_COLUMNS[0]} and {CAPTION_COLUMNS[0]}."
            )
        told[str(entry[photo])] = entry[caption]
    return told
