"""A pipeline's steps and parameters, as its compiled form states them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
            raise ParameterError(
                f"unknown parameter {name}; choices: {', '.join(sorted(kinds))}, or STAGE.KEY of a configuration"
            )
        else:
            found[name] = value(name, kinds[name], text)
    return {**found, "overrides": [*found.get("overrides", []), *overrides]} if overrides else found


KINDS = {"String": str, "Integer": int, "Float": float, "Boolean": bool, "List": list, "Dict": dict}
"""What a parameter's value is: kfp casts nothing and refuses an integer where a float is due."""


def value(name: str, kind: str, text: str) -> Any:
    """A parameter's value from its text."""
    from blip.config import one_line, value_of

    wanted = KINDS[kind.partition("[")[0]]
    try:
        found = wanted(text) if wanted in (str, int, float) else value_of(text, name)
    except ValueError as error:
        raise ParameterError(one_line(f"{name}={text[:120]}: must be of type {wanted.__name__}: {error}")) from None
    if not isinstance(found, wanted) or (isinstance(found, float) and not math.isfinite(found)):
        raise ParameterError(one_line(f"{name}={text[:120]}: must be of type {wanted.__name__}"))
    return found
