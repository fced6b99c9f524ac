"""Dialogs about scenes: a caption, and rounds of a question, candidate answers and the true one, as in VisDial."""

from random import Random
from typing import Any

from blip.datasets.shapes.questions import ANSWERS, ATTRIBUTES, refer_to
from blip.datasets.shapes.scenes import RADII, Scene
from blip.datasets.shapes.sentences import SIZE_PHRASES

FIRST = {
    "colour": "what colour is {thing}?",
    "shape": "what shape is {thing}?",
    "size": "how big is {thing}?",
    "place": "where is {thing}?",
}
FOLLOWING = {name: form.format(thing="it") for name, form in FIRST.items()}
"""Questions whose `it` is the thing of the first round: the history says which."""
CANDIDATES = tuple(
    dict.fromkeys(
        value
        for kind in ("colour", "shape", "size", "place", "ground")
        for answer in ANSWERS[kind]
        for value in (SIZE_PHRASES[answer] if answer in RADII else (answer,))
    )
)
"""All answers, with the words that mean the same size."""
SAME_MEANING = 0.5
"""Relevance of another word for the true answer."""


def talk(scene: Scene, rng: Random) -> list[dict[str, Any]]:
    """Returns the rounds of a dialog about one thing of a scene, which has two.

    A round has `question`, `answer`, `options`, the position `correct` of the answer among them, and their `relevance`.
    """
    thing = rng.choice(scene["objects"])
    found = []
    for number, name in enumerate(rng.sample(ATTRIBUTES, len(ATTRIBUTES))):
        answer = rng.choice(SIZE_PHRASES[thing[name]]) if name == "size" else thing[name]
        options = rng.sample(CANDIDATES, len(CANDIDATES))
        relevance = [
            1.0 if option == answer else SAME_MEANING if name == "size" and option in SIZE_PHRASES[thing[name]] else 0.0
            for option in options
        ]
        question = FOLLOWING[name] if number else FIRST[name].format(thing=refer_to(thing, scene, rng, without=name))
        found.append(
            {
                "question": question,
                "answer": answer,
                "options": options,
                "correct": options.index(answer),
                "relevance": relevance,
            }
        )
    return found
