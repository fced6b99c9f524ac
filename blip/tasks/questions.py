"""Several questions about one image, in a sample's json."""

from collections.abc import Mapping, Sequence
from typing import Any

from blip.batch import Example
from blip.shards.sample import BadSample
from blip.tasks.annotations import weight_of

QUESTIONS = "questions"
"""The key of a sample's json with several questions about its image."""


def questions_of(texts: Sequence[str], meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a sample's questions with their answers: those that its json lists, or else its own text.

    Raises BadSample if there are none, or if one is invalid.
    """
    listed = meta.get(QUESTIONS)
    asked = listed if isinstance(listed, list) else [{**meta, "question": texts[0] if texts else None}]
    for question in asked:
        if not isinstance(question, dict) or not isinstance(question.get("question"), str):
            raise BadSample("no question")
        answers = question.get("answers")
        if not isinstance(answers, list) or not answers:
            raise BadSample("no answers")
        if not all(isinstance(answer, str) and answer.strip() for answer in answers):
            raise BadSample("an answer that is no text")
        weight_of(question)
    if not asked:
        raise BadSample("no question")
    return asked


def questions_or_none(example: Example) -> list[dict[str, Any]]:
    try:
        return questions_of(example.texts, example.meta)
    except BadSample:
        return []
