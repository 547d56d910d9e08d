"""A YAML loader for the files that people merge by hand: a key that stands twice is an error.

PyYAML takes the last one and says nothing.
"""

from __future__ import annotations

from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"  # `<<`, which may stand beside the keys that it brings


class Loader(yaml.SafeLoader):
    """Plain YAML; repeated keys are errors."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        nodes = [key for key, _ in node.value if key.tag != MERGE]
        keys = [self.construct_object(key, deep=True) for key in nodes]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                line = nodes[number].start_mark.line + 1
                raise yaml.YAMLError(f"the key {key!r} a second time, line {line}")
        return super().construct_mapping(node, deep)
