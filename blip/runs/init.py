"""Init: writes a project's settings as YAML, each with its meaning from the class that it configures."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from blip.config import Config, ConfigError
from blip.config.presets import EXTENDS
from blip.config.schema import type_tag, union_members
from blip.runs.found import with_source
from blip.runs.stages import load_stages
from blip.storage import write_file

WIDTH = 110
"""Characters of a comment's line."""
PREAMBLE = """\
The settings of this project. The verbs read them by `--config {name}`{default}.
Change a value, or delete a line: what is not here is as the preset below says. A setting is explained where it comes
first. `--set KEY=VALUE` changes one for one call."""
Explained = set[tuple[type, str]]
"""The settings that were explained, by class and name."""


def init(
    path: str | Path,
    preset: str,
    overrides: Sequence[str],
    names: Sequence[str],
    source: str = "",
    default: bool = False,
) -> Path:
    """Writes the settings of a preset's stages, with `stage.key=value` overrides, to a YAML file.

    `source` are the data, as `ingest` takes them. `default` says that verbs read the file unasked.
    Raises ConfigError for a wrong setting, if the file exists, or if its ending is not that of a preset's file.
    """
    path = Path(path)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: the name of a file of settings ends in .yaml")
    if path.exists():
        raise ConfigError(f"{path} exists already: delete it, or name another file")
    head = PREAMBLE.format(name=path.name, default=", and in this folder without it" if default else "")
    seen: Explained = set()
    data = [f"ingest.{override}" for override in with_source([source] if source else [], [])]
    parts = [comment(head), f"{EXTENDS}: {preset}\n"]
    for stage, config in load_stages(preset, [*data, *overrides], names).items():
        parts.append(f"\n{stage}:\n" + textwrap.indent("".join(setting_lines(config, seen)), "  "))
    write_file(path, "".join(parts))
    return path


def setting_lines(config: BaseModel, seen: Explained, choices: str = "") -> Iterator[str]:
    """Yields the settings of a section in YAML, each behind its explanation; `choices` are those of its `type`."""
    cls = type(config)
    for name, field in cls.model_fields.items():
        value = getattr(config, name)
        known = (cls, name) in seen
        seen.add((cls, name))
        explained = field.description or ""
        if not explained and isinstance(value, Config):
            explained = (type(value).__doc__ or "").partition("\n\n")[0]
        explained = f"{explained} {choices if name == 'type' else literals(field.annotation)}".strip()
        if explained and not known:
            yield comment(explained)
        if isinstance(value, BaseModel):
            yield f"{name}:\n" + textwrap.indent("".join(setting_lines(value, seen, tags(field.annotation))), "  ")
        else:
            yield f"{name}: {on_one_line(to_jsonable_python(value))}\n"


def on_one_line(value: Any) -> str:
    """Returns a value in YAML's flow style."""
    listed = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return listed.strip().removeprefix("[").removesuffix("]")


def comment(text: str) -> str:
    """Returns a text as lines of comments."""
    lines = textwrap.wrap(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines)


def literals(annotation: Any) -> str:
    """Returns the choices of a setting that is one of several words."""
    words = [word for kind in union_members([annotation]) if get_origin(kind) is Literal for word in get_args(kind)]
    return f"One of: {', '.join(map(str, words))}." if len(words) > 1 else ""


def tags(annotation: Any) -> str:
    """Returns the choices of `type` in a section that is one of several classes."""
    words = [tag for kind in union_members([annotation]) if (tag := type_tag(kind))]
    return f"One of: {', '.join(words)}; each has settings of its own." if len(words) > 1 else ""
