"""YAML as it looks: the numbers and booleans of YAML 1.2, and no key twice.

PyYAML implements YAML 1.1, in which ``010`` is 8, ``1:30`` is 90 and ``no`` is false, and takes the last of two equal
keys. The patterns are those of the core schema, https://yaml.org/spec/1.2.2/#1032-tag-resolution.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, ScalarNode

MERGE, NULL, BOOL, INT, FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("merge", "null", "bool", "int", "float"))
RESOLVERS = (
    (MERGE, r"<<", "<"),
    (NULL, r"~|null|Null|NULL|", "~nN"),
    (BOOL, r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        FLOAT,
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
)
"""Tag, pattern and first characters of every plain scalar that is not a string; the first match counts."""


class DuplicateKey(yaml.MarkedYAMLError):
    """A key occurs twice in one mapping."""


class _Resolver(yaml.resolver.BaseResolver):
    """Which plain scalars are not strings."""


for _tag, _pattern, _first in RESOLVERS:
    _Resolver.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), [*_first, *([""] if _tag == NULL else [])])


class Loader(yaml.SafeLoader):
    """Reads scalars as YAML 1.2 does, and refuses a key that occurs twice."""

    yaml_implicit_resolvers = _Resolver.yaml_implicit_resolvers

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, ScalarNode):
                line = key.start_mark.line + 1
                if (name := (key.tag, key.value)) in lines:
                    problem = f"has the key {key.value!r} twice, at line {lines[name]} and line {line}"
                    raise DuplicateKey(problem=problem, problem_mark=key.start_mark)
                lines[name] = line
        return node

    def construct_yaml_int(self, node: ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


Loader.add_constructor(INT, Loader.construct_yaml_int)


class Dumper(yaml.SafeDumper):
    """Quotes the strings that ``Loader`` would read as something else."""

    yaml_implicit_resolvers = _Resolver.yaml_implicit_resolvers

    def represent_str(self, data: str) -> ScalarNode:
        has_breaks = not set(data).isdisjoint("\x85\u2028\u2029")  # only double quotes keep these apart from spaces
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if has_breaks else None)


Dumper.add_representer(str, Dumper.represent_str)


def read(text: str) -> Any:
    """The content of a YAML document.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it is not YAML, or nested too deeply.
        DuplicateKey: a mapping has a key twice.
    """
    loader = Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def write(content: Any) -> str:
    """``content`` as YAML that ``read`` reads back."""
    return str(yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110))
