"""Typed configuration: YAML in, `--set a.b=value` on top, every mistake named before anything runs."""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

EXIT_CONFIG = 42
"""Exit code of a process whose configuration is wrong: running it again cannot help."""


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the value, the rule and the way out."""


class Config(BaseModel):
    """A part's settings: immutable, with unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


C = TypeVar("C", bound=Config)


def presets() -> list[str]:
    """The names of the packaged configurations."""
    return sorted(f.name.removesuffix(".yaml") for f in resources.files("blip").joinpath("configs").iterdir() if f.name.endswith(".yaml"))


def load(cls: type[C], source: str | Path, overrides: Sequence[str] = ()) -> C:
    """Reads a packaged configuration by name, or a YAML file by path, and applies `key.subkey=value` overrides.

    Raises ConfigError that names the key, what stands there and what may stand there.
    """
    values = read(source)
    for override in overrides:
        set_value(values, override)
    return validate(cls, values, str(source))


def validate(cls: type[C], values: dict[str, Any], origin: str) -> C:
    """Checks plain values against a config class. Raises ConfigError with one line for each mistake."""
    try:
        return cls.model_validate(values)
    except ValidationError as e:
        raise ConfigError("\n".join(explain(cls, origin, error) for error in e.errors())) from None


def read(source: str | Path) -> dict[str, Any]:
    """The plain values of a packaged configuration or of a YAML file."""
    path = Path(source)
    if path.suffix in (".yaml", ".yml", ".json"):
        if not path.is_file():
            raise ConfigError(f"configuration {path}: no such file")
        text = path.read_text()
    elif str(source) in presets():
        text = resources.files("blip").joinpath("configs", f"{source}.yaml").read_text()
    else:
        raise ConfigError(f"configuration {str(source)!r} is neither a .yaml file nor one of: {', '.join(presets())}")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as e:
        raise ConfigError(f"configuration {source} is not YAML: {e}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"configuration {source} must be a mapping of keys to values, is a {type(values).__name__}")
    return values


def set_value(values: dict[str, Any], override: str) -> None:
    """Applies one `key.subkey=value`, the value read as YAML, in place."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"override {override!r} must read key.subkey=value, for example optimizer.lr=1e-4")
    *parents, last = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {parent} holds a value, not a section")
    values[last] = number(yaml.safe_load(text))


def number(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as text; a person means a number."""
    try:
        return float(value) if isinstance(value, str) and value[:1] in "+-.0123456789" else value
    except ValueError:
        return value


def explain(cls: type[BaseModel], origin: str, error: Any) -> str:
    """One line for a mistake: the key, the rule, and the choices where there are some."""
    *parents, last = error["loc"] or ("",)
    path = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        choices = sorted(keys(cls, parents))
        near = difflib.get_close_matches(str(last), choices, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{origin}: unknown key {path}; {hint}choices: {', '.join(choices)}"
    given = "" if error["type"] == "missing" else f" (given: {error['input']!r})"
    return f"{origin}: {path}: {error['msg'].removeprefix('Value error, ')}{given}"


def keys(cls: Any, path: Sequence[Any]) -> set[str]:
    """The keys that a config class takes at a path, all members of a union together."""
    if get_origin(cls) in (Union, UnionType, Annotated):
        # pydantic puts the tag of a union's member into the path; it is no key
        members = [m for m in get_args(cls) if m is not type(None)]
        return set().union(*(keys(m, p) for m in members for p in (path, path[1:])))
    if not (isinstance(cls, type) and issubclass(cls, BaseModel)):
        return set()
    if not path:
        return set(cls.model_fields)
    field = cls.model_fields.get(str(path[0]))
    return keys(field.annotation, path[1:]) if field else set()
