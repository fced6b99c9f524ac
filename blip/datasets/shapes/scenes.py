"""Random scenes, and their images."""

import io
import math
from collections.abc import Iterable
from random import Random
from typing import TypedDict

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Points = tuple[tuple[float, float], ...]


class Thing(TypedDict):
    shape: str
    colour: str
    size: str
    place: str


class Scene(TypedDict):
    ground: str
    objects: list[Thing]


COLOURS: dict[str, Colour] = {
    "red": (222, 45, 38),
    "green": (35, 150, 60),
    "blue": (45, 75, 215),
    "yellow": (250, 215, 45),
    "white": (252, 252, 252),
    "black": (22, 22, 26),
}
GROUNDS: dict[str, Colour] = {
    "grey": (136, 138, 142),
    "pink": (248, 178, 204),
    "cyan": (128, 216, 228),
    "brown": (116, 76, 48),
    "beige": (224, 202, 150),
}
RADII = {"small": 0.17, "large": 0.28}
"""In sides of the image."""
PLACES = {"left": (0.25, 0.5), "right": (0.75, 0.5), "top": (0.5, 0.25), "bottom": (0.5, 0.75), "middle": (0.5, 0.5)}
"""Centres, in sides of the image."""
SIDES = (("left", "right"), ("top", "bottom"))
"""Places of two objects."""
JITTER = 0.02
"""Largest offset of an object from its place, in sides of the image."""
TINT = 4
"""Largest offset of a colour channel from the named colour, of 255."""
SUPERSAMPLING = 4


def star_corners(points: int, inner: float) -> Points:
    """Returns the corners of a star with its first point up; inner corners are at `inner` of the radius."""
    turns = ((i * math.pi / points, inner if i % 2 else 1.0) for i in range(2 * points))
    return tuple((r * math.sin(a), -r * math.cos(a)) for a, r in turns)


ARM = 0.33
OUTLINES: dict[str, Points] = {
    "square": ((-0.92, -0.92), (0.92, -0.92), (0.92, 0.92), (-0.92, 0.92)),
    "triangle": ((0, -1.0), (1.05, 0.85), (-1.05, 0.85)),
    "star": tuple((1.1 * x, 1.1 * y) for x, y in star_corners(5, 0.45)),
    "cross": tuple((sx * x, sy * y) for sx, sy, corner in ((1, -1, 1), (1, 1, -1), (-1, 1, 1), (-1, -1, -1))
                   for x, y in ((ARM, 1.0), (ARM, ARM), (1.0, ARM))[::corner]),
}  # fmt: skip
"""Corners, in radii."""
ROUND = {"circle": 0.0, "ring": 0.55}
"""Radius of the hole, in radii."""
SHAPE_NAMES = (*ROUND, *OUTLINES)


def random_scene(rng: Random, two_objects: float = 0.0) -> Scene:
    """Draws a scene; a share `two_objects` of scenes has two objects, which differ in shape or colour."""
    ground = rng.choice(tuple(GROUNDS))
    if rng.random() >= two_objects:
        return Scene(ground=ground, objects=[random_thing(rng, rng.choice(tuple(PLACES)))])
    first, second = (random_thing(rng, place) for place in rng.choice(SIDES))
    while (first["shape"], first["colour"]) == (second["shape"], second["colour"]):
        second = random_thing(rng, second["place"])
    return Scene(ground=ground, objects=[first, second])


def random_thing(rng: Random, place: str) -> Thing:
    return Thing(
        shape=rng.choice(SHAPE_NAMES), colour=rng.choice(tuple(COLOURS)), size=rng.choice(tuple(RADII)), place=place
    )


def change_attribute(scene: Scene, rng: Random) -> Scene:
    """Returns the scene with one attribute of one object, or the ground, changed; the places of two objects are
    swapped."""
    objects = [item.copy() for item in scene["objects"]]
    item = rng.choice(objects)
    match rng.choice(("ground", "shape", "colour", "size", "place")):
        case "ground":
            return Scene(ground=choose_other(GROUNDS, scene["ground"], rng), objects=objects)
        case "shape":
            item["shape"] = choose_other(SHAPE_NAMES, item["shape"], rng)
        case "colour":
            item["colour"] = choose_other(COLOURS, item["colour"], rng)
        case "size":
            item["size"] = choose_other(RADII, item["size"], rng)
        case "place" if len(objects) == 1:
            item["place"] = choose_other(PLACES, item["place"], rng)
        case "place":
            objects[0]["place"], objects[1]["place"] = objects[1]["place"], objects[0]["place"]
    return Scene(ground=scene["ground"], objects=objects)


def choose_other(names: Iterable[str], than: str, rng: Random) -> str:
    return rng.choice([name for name in names if name != than])


def render_scene(scene: Scene, rng: Random, size: int = 32) -> bytes:
    """Renders the scene as a PNG of `size` pixels a side; places and colours vary slightly at random."""
    side = size * SUPERSAMPLING
    ground = vary_colour(GROUNDS[scene["ground"]], rng)
    image = Image.new("RGB", (side, side), ground)
    pen = ImageDraw.Draw(image)
    for item in scene["objects"]:
        x, y = (side * (centre + rng.uniform(-JITTER, JITTER)) for centre in PLACES[item["place"]])
        radius = side * RADII[item["size"]]
        colour = vary_colour(COLOURS[item["colour"]], rng)
        if item["shape"] in OUTLINES:
            pen.polygon([(x + radius * a, y + radius * b) for a, b in OUTLINES[item["shape"]]], fill=colour)
        else:
            pen.circle((x, y), radius, fill=colour)
            hole = ROUND[item["shape"]]
            if hole:
                pen.circle((x, y), hole * radius, fill=ground)
    png = io.BytesIO()
    image.reduce(SUPERSAMPLING).save(png, "png")
    return png.getvalue()


def vary_colour(colour: Colour, rng: Random) -> Colour:
    r, g, b = (min(255, max(0, c + rng.randint(-TINT, TINT))) for c in colour)
    return r, g, b
