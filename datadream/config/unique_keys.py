"""YAML in which a key that is written twice is an error: a knob, or what is said of a class, would be lost."""

from __future__ import annotations

from typing import Any

import yaml


class UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping with a key twice, of which others keep the last without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            # YAML's own refuses keys that are no scalars, and merges as often as it is told to.
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            if key.value in first:
                said = f"{key.value!r} is there twice, first in line {first[key.value].line + 1}: join them"
                raise yaml.composer.ComposerError(None, None, said, key.start_mark)
            first[key.value] = key.start_mark
        return node
