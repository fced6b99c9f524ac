"""The steps and parameters of a compiled pipeline."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kfp.dsl.graph_component import GraphComponent

OVERRIDES = "overrides"
"""The parameter with the settings of stages."""


class ParameterError(ValueError):
    """An invalid `name=value`; the message names it, the rule and the choices."""


@dataclass(frozen=True)
class PipelineStep:
    """A task of a pipeline with its number and purpose from the pipeline's docstring."""

    number: int
    name: str
    purpose: str


def steps(pipeline: GraphComponent) -> list[PipelineStep]:
    """Returns the steps that the pipeline's docstring lists as `3. captioner: purpose`, in order."""
    lines = re.findall(r"^\s*(\d+)\. ([\w-]+): (.+)$", pipeline.description or "", re.MULTILINE)
    return [PipelineStep(int(number), name, purpose) for number, name, purpose in lines]


def values(pipeline: GraphComponent, settings: Sequence[str]) -> dict[str, Any]:
    """Returns the pipeline's arguments from `name=value` texts.

    A dotted name is STAGE.KEY of a configuration and is added to `overrides`. Raises ParameterError for an unknown
    name and for a value of another type.
    """
    kinds = {name: str(spec.type) for name, spec in (pipeline.component_spec.inputs or {}).items()}
    found: dict[str, Any] = {}
    overrides: list[str] = []
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ParameterError(f"{setting!r} must read name=value")
        if "." in name and OVERRIDES in kinds:
            overrides.append(setting)
        elif name not in kinds:
            choices = ", ".join(sorted(kinds))
            raise ParameterError(f"unknown parameter {name}; choices: {choices}, or STAGE.KEY of a configuration")
        else:
            found[name] = parse_argument(name, kinds[name], text)
    if overrides:
        found[OVERRIDES] = [*found.get(OVERRIDES, []), *overrides]
    return found


def defaults(pipeline: GraphComponent) -> dict[str, Any]:
    """Returns the default values of the pipeline's parameters."""
    inputs = pipeline.component_spec.inputs or {}
    return {name: spec.default for name, spec in inputs.items() if spec.default is not None}


def require(pipeline: GraphComponent, arguments: Mapping[str, Any]) -> None:
    """Raises ParameterError if a parameter without a default has no value: the run would fail in its first step."""
    if missing := [name for name in pipeline.required_inputs if not arguments.get(name)]:
        examples = {OVERRIDES: "--set STAGE.KEY=..., such as ingest.data.web=s3://bucket/web/"}
        ways = [examples.get(name, f"--set {name}=...") for name in missing]
        raise ParameterError(f"{pipeline.name} needs {', '.join(missing)}: {', '.join(ways)}")


PARAMETER_TYPES = {"String": str, "Integer": int, "Float": float, "Boolean": bool, "List": list, "Dict": dict}
"""The Python types of kfp's parameter types; kfp does not convert, and refuses an integer for a float."""


def parse_argument(name: str, kind: str, text: str) -> Any:
    """Returns a parameter's value from its text. Raises ParameterError if it is not of the parameter's type."""
    from blip.config import one_line, parse_value

    wanted = PARAMETER_TYPES[kind.partition("[")[0]]
    try:
        found = wanted(text) if wanted in (str, int, float) else parse_value(text, name)
    except ValueError as error:
        raise ParameterError(one_line(f"{name}={text[:120]}: must be of type {wanted.__name__}: {error}")) from None
    if not isinstance(found, wanted) or (isinstance(found, float) and not math.isfinite(found)):
        raise ParameterError(one_line(f"{name}={text[:120]}: must be of type {wanted.__name__}"))
    return found
