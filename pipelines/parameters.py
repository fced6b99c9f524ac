"""A pipeline's steps and parameters, as its compiled form states them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from kfp.dsl.graph_component import GraphComponent


class ParameterError(ValueError):
    """A `name=value` that the pipeline does not take; the message names it, the rule and the choices."""


@dataclass(frozen=True)
class Step:
    """A task of a pipeline, numbered and explained as in the pipeline's docstring."""

    number: int
    name: str
    purpose: str


def steps(pipeline: GraphComponent) -> list[Step]:
    """The steps that the pipeline's docstring numbers, `3. captioner: what it is for`, in their order."""
    lines = re.findall(r"^\s*(\d+)\. ([\w-]+): (.+)$", pipeline.description or "", re.MULTILINE)
    return [Step(int(number), name, purpose) for number, name, purpose in lines]


def values(pipeline: GraphComponent, settings: Sequence[str]) -> dict[str, Any]:
    """Arguments for the pipeline from `name=value` texts; a dotted name is STAGE.KEY of a configuration, and joins the overrides.

    Raises ParameterError for an unknown name and for a value that its type cannot take.
    """
    kinds = {name: str(spec.type) for name, spec in (pipeline.component_spec.inputs or {}).items()}
    found: dict[str, Any] = {}
    overrides: list[str] = []
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ParameterError(f"{setting!r} must read name=value")
        if "." in name and "overrides" in kinds:
            overrides.append(setting)
        elif name not in kinds:
            raise ParameterError(f"unknown parameter {name}; choices: {', '.join(sorted(kinds))}, or STAGE.KEY of a configuration")
        else:
            found[name] = value(name, kinds[name], text)
    return {**found, "overrides": [*found.get("overrides", []), *overrides]} if overrides else found


READERS = {
    "String": (str, str),
    "Integer": (int, int),
    "Float": (float, float),
    "Boolean": (bool, yaml.safe_load),
    "List": (list, yaml.safe_load),
    "Dict": (dict, yaml.safe_load),
}
"""What a parameter's value is, and how its text is read: kfp casts nothing and refuses an integer where a float is due."""


def value(name: str, kind: str, text: str) -> Any:
    """A parameter's value from its text."""
    wanted, read = READERS[kind.partition("[")[0]]
    try:
        found = read(text)
    except (ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, wanted):
        raise ParameterError(f"{name}={text}: must be of type {wanted.__name__}")
    return found
