"""What the generator's text encoder makes of prompts, from its tokenizer alone."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from transformers import CLIPTokenizer

from datadream.models.source import resolve

log = logging.getLogger(__name__)


def check_texts(model: str, revision: str | None, texts: Collection[str]) -> None:
    """Warns of captions and descriptions that are longer than the text encoder reads: their ends are cut."""
    tokenizer = CLIPTokenizer.from_pretrained(resolve(model), subfolder="tokenizer", revision=revision)
    most = tokenizer.model_max_length
    if cut := [text for text in texts if len(tokenizer(text, verbose=False).input_ids) > most]:
        log.warning(
            "%d of %d captions and descriptions are longer than the %d tokens that the text encoder reads; their ends "
            "are cut, such as of %.60r...",
            *(len(cut), len(texts), most, cut[0]),
        )


def check_templates(model: str, revision: str | None, templates: Sequence[str], class_names: Sequence[str]) -> None:
    """Raises ValueError naming a template that is longer than the text encoder reads with some class, or under which
    two classes are the same to it: it reads small letters alone and joins blanks."""
    tokenizer = CLIPTokenizer.from_pretrained(resolve(model), subfolder="tokenizer", revision=revision)
    for template in templates:
        found: dict[tuple[int, ...], str] = {}
        for name in class_names:
            tokens = tuple(tokenizer(template.format(name=name), verbose=False).input_ids)
            if len(tokens) > tokenizer.model_max_length:
                raise ValueError(
                    f"generate.prompts has {template!r}: with class {name!r} it has {len(tokens)} tokens, and the "
                    f"text encoder reads {tokenizer.model_max_length}. Shorten it, or the name with data.names."
                )
            if (other := found.setdefault(tokens, name)) is not name:
                raise ValueError(
                    f"generate.prompts has {template!r}: classes {other!r} and {name!r} are the same to the text "
                    "encoder. Name one otherwise with data.names."
                )
