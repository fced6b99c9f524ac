"""What people annotated, in a sample's json: answers, weights, relevances; and lists of answers to rank."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip.config import ConfigError
from blip.shards.sample import BadSample, Sample

MOST = 1e30
"""Numbers of annotators are smaller."""


def check_answers(sample: Sample) -> None:
    """Raises BadSample unless a sample's json has annotators' answers."""
    answers = sample.meta.get("answers")
    if not isinstance(answers, list) or not answers:
        raise BadSample("no answers")
    check_texts(answers, "answer is not a text")


def weight_of(meta: Mapping[str, Any]) -> float:
    """Returns the weight of a question's loss, 1 by default. Raises BadSample if it is no number of 0 or more."""
    weight = meta.get("weight", 1.0)
    if not is_amount(weight):
        raise BadSample("weight is not a number of 0 or more")
    return float(weight)


def is_amount(value: Any) -> bool:
    """Returns whether a JSON value is a number of 0 or more that a tensor holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MOST


def check_texts(values: Any, reason: str) -> None:
    """Raises BadSample unless all values of a list are texts."""
    if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
        raise BadSample(reason)


def read_answers(path: Path) -> list[str]:
    """Reads the answers to rank. Raises ConfigError where the file is no JSON list of texts."""
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"answer_list {path}: {error.strerror}; name a JSON list of answers") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"answer_list {path} is not JSON: {error}; name a JSON list of answers") from None
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise ConfigError(f"answer_list {path} must be a JSON list of texts, one at least")
    return answers
