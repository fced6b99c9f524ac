"""What the small language models read: descriptions of scenes, followed by others or by questions and answers."""

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from blip.datasets import shapes

QUESTION = "Question: {} Answer:"
"""The prompt of a question (BLIP-2, section 4.1)."""
QUESTIONS = 4
"""Most questions of a document."""


class Turn(NamedTuple):
    """A prompt, which may be empty, and what follows it."""

    prompt: str
    reply: str


class Document(NamedTuple):
    context: str
    """What is known of a scene: a caption, or bare words in any order."""
    turns: tuple[Turn, ...]
    """Another caption of the same scene, or questions with their answers."""

    @property
    def is_dialogue(self) -> bool:
        return bool(self.turns[0].prompt)

    @property
    def continuation(self) -> str:
        return " ".join(" ".join(filter(None, turn)) for turn in self.turns)


def documents(seed: int, two_objects: float, dialogues: float = 0.5) -> Iterator[Document]:
    """Yields documents without end.

    A share `dialogues` of them has questions, a share `two_objects` of their scenes two objects.
    """
    rng = Random(f"{seed} documents")
    while True:
        scene = shapes.random_scene(rng, two_objects)
        context = bare_words(scene, rng) if rng.random() < 0.5 else shapes.write_caption(scene, rng)
        if rng.random() >= dialogues:
            yield Document(context, (Turn("", shapes.write_caption(scene, rng)),))
        else:
            asked = (shapes.ask(scene, rng) for _ in range(rng.randint(1, QUESTIONS)))
            turns = tuple(Turn(QUESTION.format(question.text), question.answer) for question in asked)
            yield Document(context, turns)


def bare_words(scene: shapes.Scene, rng: Random) -> str:
    """Returns the facts of a scene in any order, those of each thing together."""
    parts = [scene["ground"]]
    for thing in scene["objects"]:
        facts = [thing["size"], thing["colour"], thing["shape"], thing["place"]]
        parts.append(" ".join(rng.sample(facts, len(facts))))
    return " ".join(rng.sample(parts, len(parts)))
