"""Statements about two scenes, true and false ones alike often, as NLVR2 has them about photographs."""

from random import Random
from typing import Literal, NamedTuple, assert_never

from blip.datasets.shapes.scenes import COLOURS, SHAPE_NAMES, Scene, random_scene

Form = Literal["both", "left", "right", "one"]
FORMS: tuple[Form, ...] = ("both", "left", "right", "one")
PHRASES: dict[Form, str] = {
    "both": "both pictures show {claim}",
    "left": "the left picture shows {claim}",
    "right": "the right picture shows {claim}",
    "one": "one picture shows {claim}",
}
VALUES: dict[Literal["colour", "shape"], tuple[str, ...]] = {"colour": tuple(COLOURS), "shape": SHAPE_NAMES}


class ScenePair(NamedTuple):
    left: Scene
    right: Scene
    text: str
    true: bool


def draw_pair(rng: Random) -> ScenePair:
    """Returns two random scenes of one thing each, and a statement about them of a random form, as often true as not.

    False statements are about what one of the pictures shows half of the time, and otherwise about anything.
    """
    form, name, true = rng.choice(FORMS), rng.choice(("colour", "shape")), rng.random() < 0.5
    while True:
        left, right = random_scene(rng), random_scene(rng)
        if rng.random() < 0.5:
            right = alike(left, right, name)
        shown = [scene["objects"][0][name] for scene in (left, right)]
        value = rng.choice(shown) if true or rng.random() < 0.5 else rng.choice(VALUES[name])
        if holds(form, [found == value for found in shown]) == true:
            return ScenePair(left, right, PHRASES[form].format(claim=claim_of(name, value)), true)


def holds(form: Form, found: list[bool]) -> bool:
    """Returns whether a statement of a form holds, given whether its claim holds of the left and of the right scene."""
    match form:
        case "both":
            return all(found)
        case "left":
            return found[0]
        case "right":
            return found[1]
        case "one":
            return sum(found) == 1
        case _:
            assert_never(form)


def claim_of(name: str, value: str) -> str:
    phrase = value if name == "shape" else f"{value} thing"
    return f"an {phrase}" if phrase.startswith("o") else f"a {phrase}"


def alike(scene: Scene, other: Scene, name: Literal["colour", "shape"]) -> Scene:
    """Returns the other scene with an attribute of its thing as in the first."""
    thing = other["objects"][0].copy()
    thing[name] = scene["objects"][0][name]
    return Scene(ground=other["ground"], objects=[thing])
