"""Recipes, presets and overrides: the plain values of a stage's configuration."""

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from blip.config.errors import ConfigError, short_repr
from blip.config.schema import ConfigT, validate
from blip.config.yaml_text import MAX_YAML_DEPTH, MAX_YAML_LENGTH, parse_value, parse_yaml

EXTENDS = "extends"
"""The key of a preset's file that names the preset it changes."""


def stages() -> list[str]:
    """Returns the stages that have a recipe."""
    return recipe_names("recipes")


def training_stages() -> list[str]:
    """Returns the stages that train: their recipes name a task."""
    return [name for name in stages() if "task" in packaged(name)]


def presets() -> list[str]:
    """Returns the names of the packaged presets."""
    return recipe_names("recipes", "sizes")


def recipe_names(*folder: str) -> list[str]:
    files = resources.files("blip").joinpath(*folder).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_config(cls: type[ConfigT], stage: str, preset: str, overrides: Sequence[str] = ()) -> ConfigT:
    """Returns the configuration of a stage: its recipe, changed by a preset and then by `key.subkey=value` overrides.

    A preset is the name of a packaged one or the path of a YAML file, which holds settings by stage, and `extends`
    with the preset that it changes. Raises ConfigError that names the key, its value and the choices.
    """
    if stage not in stages():
        raise ConfigError(f"there is no stage {short_repr(stage)}; choices: {', '.join(stages())}")
    values = packaged(stage)
    for patch in patches(preset):
        values = merged(values, settings_of(patch, stage))
    given: dict[str, Any] = {}
    for override in overrides:
        set_value(given, override)
    return validate(cls, merged(values, given), f"{stage} (preset {preset})")


@cache
def packaged(*path: str) -> dict[str, Any]:
    """Returns the values of a packaged file, which callers must not change."""
    *folders, name = path
    file = resources.files("blip").joinpath("recipes", *folders, f"{name}.yaml")
    return require_mapping(parse_yaml(file.read_text(encoding="utf-8"), name), name)


def patches(preset: str) -> list[dict[str, Any]]:
    """Returns the settings by stage of a preset and of those that it extends, base first. Raises ConfigError."""
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
            raise ConfigError(f"preset {name}: {EXTENDS} must name a preset (given: {short_repr(base)})")
        found.insert(0, patch)
        name = str(Path(name).parent / base) if is_file(base) else base
    return found


def read_preset(preset: str) -> dict[str, Any]:
    """Returns the settings by stage in a preset's own file. Raises ConfigError."""
    if is_file(preset):
        patch = read_config(preset)
    elif preset in presets():
        patch = packaged("sizes", preset)
    else:
        raise ConfigError(f"preset {short_repr(preset)} is neither one of: {', '.join(presets())}; nor a .yaml file")
    for key, settings in patch.items():
        unknown = [stage for stage in stages_of(key) if stage not in stages()]
        if unknown and key != EXTENDS:
            raise ConfigError(
                f"preset {preset}: unknown stage {short_repr(unknown[0])}; choices: {', '.join([*stages(), EXTENDS])}"
            )
        if key != EXTENDS and settings is not None and not isinstance(settings, dict):
            raise ConfigError(
                f"preset {preset}: {key} must hold settings as key: value (given: {short_repr(settings)})"
            )
    return patch


def is_file(preset: str) -> bool:
    """Whether a preset is the path of a file rather than a name."""
    return preset.endswith((".yaml", ".yml", ".json"))


def stages_of(key: str) -> list[str]:
    """Returns the stages of a preset's key: one, or several separated by commas."""
    return [stage.strip() for stage in key.split(",")]


def settings_of(patch: dict[str, Any], stage: str) -> dict[str, Any]:
    """Returns a preset's settings for a stage; a later key overrides an earlier one."""
    found: dict[str, Any] = {}
    for key, settings in patch.items():
        if key != EXTENDS and stage in stages_of(key):
            found = merged(found, settings or {})
    return found


class WholeSection(dict[str, Any]):
    """A section given as a whole by an override: it replaces the section of the recipe."""


def merged(values: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Returns values merged with a patch, section by section; a section of another `type` is replaced."""
    found = dict(values)
    for key, new in patch.items():
        old = found.get(key)
        if (
            isinstance(old, dict)
            and isinstance(new, dict)
            and not isinstance(new, WholeSection)
            and same_type(old, new)
        ):
            found[key] = merged(old, new)
        else:
            found[key] = new
    return found


def same_type(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return "type" not in old or "type" not in new or old["type"] == new["type"]


def read_config(path: str | Path) -> dict[str, Any]:
    """Returns the plain values of a YAML or JSON file. Raises ConfigError."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"configuration {path} is a folder, not a file")
    if not path.is_file():
        raise ConfigError(f"configuration {path}: no such file")
    try:
        with path.open("rb") as file:
            data = file.read(4 * MAX_YAML_LENGTH + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        position = f"byte {error.object[error.start]:#x} at {error.start}"
        raise ConfigError(f"configuration {path} is not UTF-8 ({position}): save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}") from None
    return require_mapping(parse_yaml(text, f"configuration {path}"), f"configuration {path}")


def require_mapping(values: Any, origin: str) -> dict[str, Any]:
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
        raise ConfigError(f"override {short_repr(override)} must read key.subkey=value, for example optimizer.lr=1e-4")
    if len(parents) > MAX_YAML_DEPTH:
        raise ConfigError(f"override {short_repr(override)} has more than {MAX_YAML_DEPTH} levels")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {short_repr(override)}: {short_repr(parent)} holds a value, not a section")
    found = parse_value(text.strip(), f"override {short_repr(override)}")
    values[last] = WholeSection(found) if isinstance(found, dict) else found
