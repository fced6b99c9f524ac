"""A bounded subset of YAML: core schema, no tags, unique text keys."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from blip.config.errors import ConfigError, one_line, short_repr

MAX_YAML_LENGTH, MAX_YAML_DEPTH, MAX_YAML_VALUES = 50_000, 40, 5_000
"""Limits of a YAML text: characters, levels, and values with every alias expanded."""

ENCLOSED = re.compile(r"\[.*\]|\{.*\}|\".*\"|'.*'", re.DOTALL)


def parse_value(text: str, origin: str) -> Any:
    """Returns the value of a text on the command line.

    Within brackets or quotes the text is YAML; otherwise it is a number, a truth value, null, or the text itself, so
    that a path needs no quotes even if it holds ` #` or `: `. `origin` names the text in errors. Raises ConfigError.
    """
    if ENCLOSED.fullmatch(text):
        return parse_yaml(text, origin)
    try:
        return parse_scalar(text)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None


def parse_yaml(text: str, origin: str) -> Any:
    """Returns the values of a YAML text, in bounded time and memory. Raises ConfigError."""
    if len(text) > MAX_YAML_LENGTH:
        raise ConfigError(f"{origin} is longer than {MAX_YAML_LENGTH:,} characters")
    try:
        loader = YamlLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        check_expanded_size(node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(one_line(f"{origin} is not YAML: {describe_yaml_error(error)}")) from None
    except ValueError as error:
        raise ConfigError(one_line(f"{origin}: {error}")) from None


def describe_yaml_error(error: yaml.YAMLError) -> str:
    """Returns the problem of a YAML text and its position."""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
    mark = getattr(error, "problem_mark", None)
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else str(problem)


SCALARS = {
    re.compile(r"~|null|Null|NULL|"): lambda _: None,
    re.compile(r"true|True|TRUE"): lambda _: True,
    re.compile(r"false|False|FALSE"): lambda _: False,
    re.compile(r"[-+]?[0-9]{1,400}"): int,
    re.compile(r"0x[0-9a-fA-F]{1,400}"): lambda text: int(text, 16),
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"): float,
    re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"): lambda text: float(text.replace(".", "")),
}
"""Unquoted values by YAML 1.2's core schema: a date, `on` or `1:30` is text, and `1e-4` a number."""


def parse_scalar(text: str) -> Any:
    """Returns the number, truth value or null of an unquoted text, or the text. Raises ValueError as `checked_text`."""
    for pattern, convert in SCALARS.items():
        if pattern.fullmatch(text):
            return convert(text)
    return checked_text(text)


def checked_text(text: str) -> str:
    """Returns the text. Raises ValueError if no path or UTF-8 file can hold it."""
    if "\0" in text:
        raise ValueError("it holds a NUL character")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half a character, or bytes that are not UTF-8") from None
    return text


class YamlLoader(yaml.SafeLoader):
    """Loads YAML of the core schema; refuses tags, keys that are not text, and duplicate keys by ValueError."""

    depth = count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"the tag {short_repr(event.tag)} is not taken: write the value alone")
        self.depth += 1
        self.count += 1
        if self.depth > MAX_YAML_DEPTH or self.count > MAX_YAML_VALUES:
            raise ValueError(f"it has more than {MAX_YAML_DEPTH} levels or {MAX_YAML_VALUES:,} values")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:  # noqa: ARG002
        match node:
            case yaml.ScalarNode():
                return checked_text(node.value) if node.style else parse_scalar(node.value)
            case yaml.SequenceNode():
                return [self.construct_object(item) for item in node.value]
            case _:
                return self.construct_section(node)

    def construct_section(self, node: yaml.MappingNode) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"a key must be text (line {key.start_mark.line + 1})")
            if key.value in found:
                raise ValueError(f"the key {short_repr(key.value)} stands twice (line {key.start_mark.line + 1})")
            found[key.value] = self.construct_object(value)
        return found


def check_expanded_size(node: yaml.Node) -> None:
    """Raises ValueError if a text exceeds the limits once every alias is expanded, as a recursive alias does."""
    todo: list[tuple[Any, int]] = [(node, 0)]
    count = 0
    while todo:
        current, depth = todo.pop()
        count += 1
        if count > MAX_YAML_VALUES or depth > MAX_YAML_DEPTH:
            raise ValueError(
                f"its anchors and aliases make more than {MAX_YAML_VALUES:,} values or {MAX_YAML_DEPTH} levels"
            )
        todo += [(child, depth + 1) for child in children(current)]


def children(node: Any) -> Iterator[Any]:
    match node:
        case yaml.SequenceNode():
            yield from node.value
        case yaml.MappingNode():
            for key, value in node.value:
                yield key
                yield value
