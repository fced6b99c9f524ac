"""Typed configuration: a recipe for each stage, a preset's patch over it, `--set a.b=value` on top; every mistake is one line."""

import difflib
import re
import reprlib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

EXIT_CONFIG = 42
"""Exit code of a process whose configuration is wrong: running it again cannot help."""

EXTENDS = "extends"
"""The key of a preset's file that names the preset it changes."""
LONGEST, DEEPEST, MOST = 50_000, 40, 5_000
"""Bounds of a YAML text: its characters, its levels, and its values with every alias written out."""
LINE = 700
"""Characters of an error at most."""


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the value, the rule and the way out."""


class Config(BaseModel):
    """A part's settings: immutable, unknown keys and numbers that are not finite refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


C = TypeVar("C", bound=Config)


def stages() -> list[str]:
    """The stages that have a recipe."""
    return names("recipes")


def presets() -> list[str]:
    """The packaged presets."""
    return names("recipes", "sizes")


def names(*folder: str) -> list[str]:
    files = resources.files("blip").joinpath(*folder).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load(cls: type[C], stage: str, preset: str, overrides: Sequence[str] = ()) -> C:
    """The configuration of a stage: its recipe, changed by a preset and then by `key.subkey=value` overrides.

    A preset is packaged, or the path of a YAML file of the same form: settings by stage, and `extends` for the preset that it changes.
    Raises ConfigError that names the key, what stands there and what may stand there.
    """
    if stage not in stages():
        raise ConfigError(f"there is no stage {shown(stage)}; choices: {', '.join(stages())}")
    values = packaged(stage)
    for patch in patches(preset):
        values = merged(values, of_stage(patch, stage))
    given: dict[str, Any] = {}
    for override in overrides:
        set_value(given, override)
    return validate(cls, merged(values, given), f"{stage} (preset {preset})")


@cache
def packaged(*path: str) -> dict[str, Any]:
    """The values of a packaged file; nobody changes them."""
    text = resources.files("blip").joinpath("recipes", *path[:-1], f"{path[-1]}.yaml").read_text(encoding="utf-8")
    return mapping(parse(text, path[-1]), path[-1])


def patches(preset: str) -> list[dict[str, Any]]:
    """What a preset and those that it extends say, by stage, the farthest first. Raises ConfigError."""
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    name = preset
    while name:
        if name in seen:
            raise ConfigError(f"preset {name} extends itself")
        seen.add(name)
        patch = read_preset(name)
        base = patch.get(EXTENDS, "")
        if not isinstance(base, str):
            raise ConfigError(f"preset {name}: {EXTENDS} must name a preset (given: {shown(base)})")
        found.insert(0, patch)
        name = str(Path(name).parent / base) if is_file(base) else base
    return found


def read_preset(preset: str) -> dict[str, Any]:
    """A preset's settings by stage, as its file has them. Raises ConfigError."""
    if is_file(preset):
        patch = read(preset)
    elif preset in presets():
        patch = packaged("sizes", preset)
    else:
        raise ConfigError(f"preset {shown(preset)} is neither one of: {', '.join(presets())}; nor a .yaml file")
    for key, settings in patch.items():
        unknown = [stage for stage in stages_of(key) if stage not in stages()]
        if unknown and key != EXTENDS:
            raise ConfigError(
                f"preset {preset}: unknown stage {shown(unknown[0])}; choices: {', '.join([*stages(), EXTENDS])}"
            )
        if key != EXTENDS and settings is not None and not isinstance(settings, dict):
            raise ConfigError(f"preset {preset}: {key} must hold settings as key: value (given: {shown(settings)})")
    return patch


def is_file(preset: str) -> bool:
    """Whether a preset is the path of a file rather than a name."""
    return preset.endswith((".yaml", ".yml", ".json"))


def stages_of(key: str) -> list[str]:
    """The stages that a key of a preset names: one, or several with commas between."""
    return [stage.strip() for stage in key.split(",")]


def of_stage(patch: dict[str, Any], stage: str) -> dict[str, Any]:
    """What a preset says of a stage; of two keys that name it the later one has the last word."""
    found: dict[str, Any] = {}
    for key, settings in patch.items():
        if key != EXTENDS and stage in stages_of(key):
            found = merged(found, settings or {})
    return found


class Whole(dict[str, Any]):
    """A section that an override gives as a whole: it takes the place of what was there."""


def merged(values: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Values with those of a patch in their place, section by section; a section of another `type` begins anew."""
    found = dict(values)
    for key, new in patch.items():
        old = found.get(key)
        if isinstance(old, dict) and isinstance(new, dict) and not isinstance(new, Whole) and same_type(old, new):
            found[key] = merged(old, new)
        else:
            found[key] = new
    return found


def same_type(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return "type" not in old or "type" not in new or old["type"] == new["type"]


def validate(cls: type[C], values: dict[str, Any], origin: str) -> C:
    """Checks plain values against a config class. Raises ConfigError with one line for each mistake."""
    try:
        return cls.model_validate(values)
    except ValidationError as e:
        lines = [one_line(f"{origin}: {explain(cls, error)}") for error in e.errors(include_url=False)]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def read(path: str | Path) -> dict[str, Any]:
    """The plain values of a YAML or JSON file. Raises ConfigError."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"configuration {path} is a folder, not a file")
    if not path.is_file():
        raise ConfigError(f"configuration {path}: no such file")
    try:
        with path.open("rb") as file:
            data = file.read(4 * LONGEST + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = f"byte {error.object[error.start]:#x} at {error.start}"
        raise ConfigError(f"configuration {path} is not UTF-8 ({at}): save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}") from None
    return mapping(parse(text, f"configuration {path}"), f"configuration {path}")


def mapping(values: Any, origin: str) -> dict[str, Any]:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{origin} must be a mapping of keys to values, is a {type(values).__name__}")
    return values


def set_value(values: dict[str, Any], override: str) -> None:
    """Applies one `key.subkey=value` in place. Raises ConfigError."""
    path, equals, text = override.partition("=")
    *parents, last = path.split(".")
    if not equals or not all([*parents, last]):
        raise ConfigError(f"override {shown(override)} must read key.subkey=value, for example optimizer.lr=1e-4")
    if len(parents) > DEEPEST:
        raise ConfigError(f"override {shown(override)} has more than {DEEPEST} levels")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {shown(override)}: {shown(parent)} holds a value, not a section")
    found = value_of(text.strip(), f"override {shown(override)}")
    values[last] = Whole(found) if isinstance(found, dict) else found


ENCLOSED = re.compile(r"\[.*\]|\{.*\}|\".*\"|'.*'", re.DOTALL)


def value_of(text: str, origin: str) -> Any:
    """What a value on the command line says: YAML within brackets or quotes; otherwise a number, a truth value, null, or just the text.

    So a path needs no quotes whatever is in it, ` #` and `: ` included. Raises ConfigError.
    """
    if ENCLOSED.fullmatch(text):
        return parse(text, origin)
    try:
        return plain(text)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None


def parse(text: str, origin: str) -> Any:
    """The values of a YAML text. Raises ConfigError, in bounded time and memory."""
    if len(text) > LONGEST:
        raise ConfigError(f"{origin} is longer than {LONGEST:,} characters")
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        measure(node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(one_line(f"{origin} is not YAML: {fault(error)}")) from None
    except ValueError as error:
        raise ConfigError(one_line(f"{origin}: {error}")) from None


def fault(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML text, and where."""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
    mark = getattr(error, "problem_mark", None)
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else str(problem)


PLAIN = {
    re.compile(r"~|null|Null|NULL|"): lambda _: None,
    re.compile(r"true|True|TRUE"): lambda _: True,
    re.compile(r"false|False|FALSE"): lambda _: False,
    re.compile(r"[-+]?[0-9]{1,400}"): int,
    re.compile(r"0x[0-9a-fA-F]{1,400}"): lambda text: int(text, 16),
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"): float,
    re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"): lambda text: float(text.replace(".", "")),
}
"""What text without quotes stands for, by YAML 1.2's core schema: a date, `on` or `1:30` is text, and `1e-4` a number."""


def plain(text: str) -> Any:
    """The number, truth value or null that a text spells, or else the text itself. Raises ValueError for what no path or file can hold."""
    for pattern, make in PLAIN.items():
        if pattern.fullmatch(text):
            return make(text)
    return sound(text)


def sound(text: str) -> str:
    """The text, if it can stand in a file and name one."""
    if "\0" in text:
        raise ValueError("it holds a NUL character")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half a character, or bytes that are not UTF-8") from None
    return text


class Loader(yaml.SafeLoader):
    """Reads YAML of the core schema: without tags, with keys that are text and stand once in their section."""

    depth = count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"the tag {shown(event.tag)} is not taken: write the value alone")
        self.depth += 1
        self.count += 1
        if self.depth > DEEPEST or self.count > MOST:
            raise ValueError(f"it has more than {DEEPEST} levels or {MOST:,} values")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:  # noqa: ARG002
        match node:
            case yaml.ScalarNode():
                return sound(node.value) if node.style else plain(node.value)
            case yaml.SequenceNode():
                return [self.construct_object(item) for item in node.value]
            case _:
                return self.section(node)

    def section(self, node: yaml.MappingNode) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"a key must be text (line {key.start_mark.line + 1})")
            if key.value in found:
                raise ValueError(f"the key {shown(key.value)} stands twice (line {key.start_mark.line + 1})")
            found[key.value] = self.construct_object(value)
        return found


def measure(node: yaml.Node) -> None:
    """Raises ValueError where a text says too much once every alias is written out, or an alias is within itself."""
    todo: list[tuple[Any, int]] = [(node, 0)]
    count = 0
    while todo:
        at, depth = todo.pop()
        count += 1
        if count > MOST or depth > DEEPEST:
            raise ValueError(f"its anchors and aliases make more than {MOST:,} values or {DEEPEST} levels")
        todo += [(child, depth + 1) for child in children(at)]


def children(node: Any) -> Iterator[Any]:
    match node:
        case yaml.SequenceNode():
            yield from node.value
        case yaml.MappingNode():
            for key, value in node.value:
                yield key
                yield value


def shown(value: Any) -> str:
    """A value as errors show it: on one line, and cut."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 120
    return short.repr(value)


def one_line(text: str) -> str:
    """An error on one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= LINE else f"{line[: LINE - 4]} ..."


def explain(cls: type[BaseModel], error: Any) -> str:
    """What is wrong in a configuration: the key, the rule, and the choices where there are some."""
    path, holder = located(cls, error["loc"])
    name = ".".join(map(str, path))
    if error["type"] == "extra_forbidden":
        choices = sorted(holder)
        near = difflib.get_close_matches(str(path[-1]), choices, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"unknown key {name[:200]}; {hint}choices: {', '.join(choices)}"
    if error["type"] == "missing":
        return f"{name} has no value: give it as {name}=VALUE"
    rule = error["msg"].removeprefix("Value error, ")
    if isinstance(error["input"], dict | BaseModel) and error["type"] == "value_error":
        # several settings do not fit together, and the rule names them
        return rule
    given = f"{name}: {rule} (given: {shown(error['input'])})"
    if error["type"] == "string_type" and isinstance(error["input"], int | float):
        return f"{given}; a number that is meant as text needs quotes within quotes: '\"{shown(error['input'])}\"'"
    return given


def located(cls: Any, loc: Sequence[Any]) -> tuple[list[Any], set[str]]:
    """The keys that lead to a place, without the tags that pydantic puts between them, and what keys its section takes."""
    path: list[Any] = []
    kinds, holders = [cls], [cls]
    for step in loc:
        chosen = [kind for kind in members(kinds) if tag(kind) == step]
        if chosen and len(members(kinds)) > 1:
            kinds = chosen
            continue
        path.append(step)
        holders = members(kinds)
        kinds = [of for kind in holders for of in below(kind, step)]
    return path, {key for kind in holders if is_config(kind) for key in kind.model_fields}


def members(kinds: Sequence[Any]) -> list[Any]:
    """The types that annotations stand for, those of unions one by one."""
    found: list[Any] = []
    for kind in kinds:
        match get_origin(kind):
            case origin if origin in (Union, UnionType):
                found += members(get_args(kind))
            case origin if origin is Annotated:
                found += members(get_args(kind)[:1])
            case _:
                found.append(kind)
    return found


def is_config(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def tag(kind: Any) -> Any:
    """The `type` that tells a member of a union from the others."""
    return kind.model_fields["type"].default if is_config(kind) and "type" in kind.model_fields else None


def below(kind: Any, key: Any) -> list[Any]:
    """The type of what stands under a key."""
    if is_config(kind):
        return [kind.model_fields[key].annotation] if key in kind.model_fields else []
    return list(get_args(kind)[-1:])
