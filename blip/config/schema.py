"""The base of all configuration classes, and their validation with one line per mistake."""

import difflib
from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from blip.config.errors import ConfigError, one_line, short_repr


class Config(BaseModel):
    """Settings of one part: immutable; unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


ConfigT = TypeVar("ConfigT", bound=Config)


def validate(cls: type[ConfigT], values: dict[str, Any], origin: str) -> ConfigT:
    """Returns plain values as a config. Raises ConfigError with one line per mistake, which begins with `origin`."""
    try:
        return cls.model_validate(values)
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
    lines = [one_line(f"{origin}: {explain(cls, error)}") for error in errors]
    raise ConfigError("\n".join(dict.fromkeys(lines)))


def explain(cls: type[BaseModel], error: Any) -> str:
    """Returns the message for an error of pydantic: the key, the rule, and the choices if there are any."""
    path, known_keys = find_section(cls, error["loc"])
    name = ".".join(map(str, path))
    if error["type"] == "extra_forbidden":
        choices = sorted(known_keys)
        near = difflib.get_close_matches(str(path[-1]), choices, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"unknown key {name[:200]}; {hint}choices: {', '.join(choices)}"
    if error["type"] == "missing":
        return f"{name} has no value: give it as {name}=VALUE"
    rule = error["msg"].removeprefix("Value error, ")
    if isinstance(error["input"], dict | BaseModel) and error["type"] == "value_error":
        # the rule of a whole section names the settings that do not fit together
        return rule
    given = f"{name}: {rule} (given: {short_repr(error['input'])})"
    if error["type"] == "string_type" and isinstance(error["input"], int | float):
        quoted = f"'\"{short_repr(error['input'])}\"'"
        return f"{given}; a number that is meant as text needs quotes within quotes: {quoted}"
    return given


def find_section(cls: Any, loc: Sequence[Any]) -> tuple[list[Any], set[str]]:
    """Returns the keys that lead to pydantic's location, without its tags of unions, and the keys of that section."""
    path: list[Any] = []
    types, sections = [cls], [cls]
    for step in loc:
        chosen = [kind for kind in union_members(types) if type_tag(kind) == step]
        if chosen and len(union_members(types)) > 1:
            types = chosen
            continue
        path.append(step)
        sections = union_members(types)
        types = [child for section in sections for child in types_under(section, step)]
    return path, {key for section in sections if is_config(section) for key in section.model_fields}


def union_members(types: Sequence[Any]) -> list[Any]:
    """Returns the types of annotations, with unions replaced by their members."""
    found: list[Any] = []
    for kind in types:
        match get_origin(kind):
            case origin if origin in (Union, UnionType):
                found += union_members(get_args(kind))
            case origin if origin is Annotated:
                found += union_members(get_args(kind)[:1])
            case _:
                found.append(kind)
    return found


def is_config(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def type_tag(kind: Any) -> Any:
    """Returns the value of `type` by which a union selects this class, or None."""
    return kind.model_fields["type"].default if is_config(kind) and "type" in kind.model_fields else None


def types_under(kind: Any, key: Any) -> list[Any]:
    """Returns the types of the value under a key."""
    if is_config(kind):
        return [kind.model_fields[key].annotation] if key in kind.model_fields else []
    return list(get_args(kind)[-1:])
