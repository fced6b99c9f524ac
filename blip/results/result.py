"""What the results of all verbs have in common."""

import json
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict

from blip.config import Config, ConfigError, validate
from blip.storage import write_file


class Result(Config):
    """Fields common to all results.

    Numbers may be NaN, so that one undefined value does not fail a finished step.
    """

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")

    seconds: float = 0.0
    """Wall time in seconds."""
    gpu_hours: float = 0.0
    """GPU hours over all attempts and workers."""
    mlflow: str = ""
    """URL of the MLflow run; empty without an MLflow server."""
    digest: str = ""
    """Digest of the manifest or model that the verb wrote or evaluated."""

    def save(self, path: str | Path) -> None:
        """Writes the result to a file. Raises StoreError if that is impossible."""
        write_file(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a file that `save` wrote. Raises ConfigError, with a one-line message, if it is missing or invalid."""
        try:
            values = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; name the metrics.json of a finished {cls.verb()}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path} is not JSON ({error}); name the metrics.json of a finished {cls.verb()}"
            ) from None
        if not isinstance(values, dict):
            raise ConfigError(
                f"{path} must hold the metrics.json of a finished {cls.verb()}, holds a {type(values).__name__}"
            )
        return validate(cls, values, f"{path} is not the metrics.json of a finished {cls.verb()}")

    @classmethod
    def verb(cls) -> str:
        """Returns the verb's name, such as `train` for `TrainResult`."""
        return cls.__name__.removesuffix("Result").lower()

    def compared(self) -> dict[str, float]:
        """Returns the finite key figures for the comparison of runs, by dotted name."""
        return dict(numbers({"seconds": self.seconds, **({"gpu_hours": self.gpu_hours} if self.gpu_hours else {})}))


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields the dotted names and values of the finite numbers in nested mappings."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and isfinite(value):
            yield f"{prefix}{name}", value
