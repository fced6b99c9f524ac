"""Questions about scenes with their true answers, and the answers to any question of the same grammar."""

import re
from collections.abc import Iterator
from itertools import chain, combinations
from random import Random
from typing import Literal, NamedTuple, assert_never

from blip.data.tokenizer import clean_question
from blip.datasets.shapes.scenes import COLOURS, GROUNDS, PLACES, RADII, SHAPE_NAMES, Scene, Thing, choose_other
from blip.datasets.shapes.sentences import (
    MEANING_BY_PHRASE,
    PLACE_PHRASES,
    PLACES_BY_RELATION,
    RELATION_PHRASES,
    SIZE_PHRASES,
    all_phrases,
    slot_pattern,
)

QuestionKind = Literal["colour", "shape", "size", "place", "ground", "number", "yes/no"]
Attribute = Literal["size", "colour", "shape", "place"]
ATTRIBUTES: tuple[Attribute, ...] = ("size", "colour", "shape", "place")
VALUES: dict[Attribute, tuple[str, ...]] = {
    "size": tuple(RADII),
    "colour": tuple(COLOURS),
    "shape": SHAPE_NAMES,
    "place": tuple(PLACES),
}
NUMBERS = ("0", "1", "2")
ANSWERS: dict[QuestionKind, tuple[str, ...]] = {
    "colour": VALUES["colour"],
    "shape": VALUES["shape"],
    "size": VALUES["size"],
    "place": VALUES["place"],
    "ground": tuple(GROUNDS),
    "number": NUMBERS,
    "yes/no": ("yes", "no"),
}
"""The possible answers to each kind of question."""
KINDS: tuple[QuestionKind, ...] = tuple(ANSWERS)

FORMS: dict[Literal["colour", "shape", "size", "place"], tuple[str, ...]] = {
    "colour": ("what colour is {thing}?", "what is the colour of {thing}?"),
    "shape": ("what shape is {thing}?", "what is the shape of {thing}?"),
    "size": ("how big is {thing}?", "is {thing} small or large?"),
    "place": ("where is {thing}?", "in which part of the picture is {thing}?"),
}
GROUND_FORMS = ("what colour is the ground?", "what is the colour of the background?")
NUMBER_FORM = "how many {things} are there?"
PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPE_NAMES}


class Question(NamedTuple):
    text: str
    answer: str
    kind: QuestionKind


def ask(scene: Scene, rng: Random, kind: QuestionKind | None = None) -> Question:
    """Returns a question about a scene with its true answer, of a random kind if none is given.

    Answers to yes/no questions are balanced, and so are numbers of which both 0 and more than 0 are possible.
    """
    kind = kind or rng.choice(KINDS)
    match kind:
        case "colour" | "shape" | "size" | "place":
            thing = rng.choice(scene["objects"])
            text = rng.choice(FORMS[kind]).format(thing=refer_to(thing, scene, rng, without=kind))
        case "ground":
            text = rng.choice(GROUND_FORMS)
        case "number":
            text = NUMBER_FORM.format(things=plural_phrase(scene, rng))
        case "yes/no":
            text = yes_no_question(scene, rng)
        case _:
            assert_never(kind)
    truth = answer(scene, text)
    assert truth is not None, text
    return Question(text, truth, kind)


def ask_several(scene: Scene, rng: Random, count: int) -> list[Question]:
    """Returns `count` different questions about a scene, of kinds as different as possible."""
    order = rng.sample(KINDS, len(KINDS))
    found: dict[str, Question] = {}
    tries = 0
    while len(found) < count:
        question = ask(scene, rng, order[tries % len(order)])
        found.setdefault(question.text, question)
        tries += 1
    return list(found.values())


def answer(scene: Scene, text: str) -> str | None:
    """Returns the true answer to a question about a scene.

    None if the question is outside of the grammar, or asks about a thing that is not there or is there twice.
    """
    text = clean_question(text).strip()
    for kind, pattern in PATTERNS:
        found = pattern.fullmatch(text)
        if found is not None:
            said = {slot: meaning_of(words) for slot, words in found.groupdict().items() if words}
            return answer_to(kind, scene, said)
    return None


def answer_to(kind: QuestionKind, scene: Scene, said: dict[str, str]) -> str | None:
    first = {slot: said[slot] for slot in ATTRIBUTES if slot in said}
    match kind:
        case "colour" | "shape" | "size" | "place":
            thing = the_one(scene, first)
            return thing[kind] if thing else None
        case "ground":
            return scene["ground"]
        case "number":
            return str(len(those(scene, first)))
        case "yes/no" if "ground" in said:
            return yes_no(said["ground"] == scene["ground"])
        case "yes/no" if "exists" in said:
            return yes_no(bool(those(scene, first)))
        case "yes/no":
            thing = the_one(scene, first)
            if thing is None:
                return None
            if "relation" in said:
                other = the_one(scene, {slot.removesuffix("2"): said[slot] for slot in said if slot.endswith("2")})
                return (
                    yes_no((thing["place"], other["place"]) == PLACES_BY_RELATION[said["relation"]]) if other else None
                )
            claimed = {slot.removeprefix("is_"): said[slot] for slot in said if slot.startswith("is_")}
            return yes_no(claimed.items() <= thing.items())
        case _:
            assert_never(kind)


def those(scene: Scene, claim: dict[str, str]) -> list[Thing]:
    return [thing for thing in scene["objects"] if claim.items() <= thing.items()]


def the_one(scene: Scene, claim: dict[str, str]) -> Thing | None:
    """Returns the only thing that a claim describes; None if there is none, or more than one."""
    found = those(scene, claim)
    return found[0] if len(found) == 1 else None


def yes_no(true: bool) -> str:
    return "yes" if true else "no"


def meaning_of(words: str) -> str:
    return MEANING_BY_PHRASE.get(words, SINGULARS.get(words, words))


def refer_to(thing: Thing, scene: Scene, rng: Random, without: Attribute | None = None) -> str:
    """Returns a phrase such as `the red thing on the left` that describes no other thing of the scene, and says nothing
    about the attribute `without`."""
    usable = [name for name in ATTRIBUTES if name != without]
    choices = chain.from_iterable(combinations(usable, count) for count in (1, 2))
    unique = [names for names in choices if the_one(scene, {name: thing[name] for name in names}) is thing]
    return "the " + describe({name: thing[name] for name in rng.choice(unique)}, rng)


def describe(claim: dict[str, str], rng: Random, plural: bool = False) -> str:
    """Returns the words for some attributes of a thing: `small red circle on the left`, `red things`."""
    shape = claim.get("shape", "thing")
    words = [
        rng.choice(SIZE_PHRASES[claim["size"]]) if "size" in claim else "",
        claim.get("colour", ""),
        PLURALS.get(shape, "things") if plural else shape,
        rng.choice(PLACE_PHRASES[claim["place"]]) if "place" in claim else "",
    ]
    return " ".join(filter(None, words))


def plural_phrase(scene: Scene, rng: Random) -> str:
    """Returns what to count: all things, or those with one attribute, which half of the time is one of the scene's."""
    if rng.random() < 0.25:
        return "things"
    name = rng.choice(("size", "colour", "shape"))
    mine = rng.choice(scene["objects"])[name]
    return describe({name: mine if rng.random() < 0.5 else choose_other(VALUES[name], mine, rng)}, rng, plural=True)


def yes_no_question(scene: Scene, rng: Random) -> str:
    true = rng.random() < 0.5
    form = rng.choice(("is", "exists", "ground", "relation"))
    if form == "ground":
        ground = scene["ground"] if true else choose_other(GROUNDS, scene["ground"], rng)
        return f"is the {rng.choice(('ground', 'background'))} {ground}?"
    if form == "relation" and len(scene["objects"]) == 2:
        return relation_question(scene, true, rng)
    if form == "exists":
        return f"is there {article(describe(claim_of(scene, true, rng), rng))}?"
    thing = rng.choice(scene["objects"])
    name = rng.choice(ATTRIBUTES)
    value = thing[name] if true else choose_other(VALUES[name], thing[name], rng)
    return f"is {refer_to(thing, scene, rng, without=name)} {predicate(name, value, rng)}?"


def relation_question(scene: Scene, true: bool, rng: Random) -> str:
    first, other = rng.sample(scene["objects"], 2)
    places = (first["place"], other["place"]) if true else (other["place"], first["place"])
    relation = rng.choice(RELATION_PHRASES[places])
    thing, than = (refer_to(item, scene, rng, without="place") for item in (first, other))
    return f"is {thing} {relation} {than}?"


def claim_of(scene: Scene, true: bool, rng: Random) -> dict[str, str]:
    """Returns one to three attributes that a thing of the scene has, or that none has since one of them is changed."""
    while True:
        thing = rng.choice(scene["objects"])
        names = rng.sample(ATTRIBUTES, rng.randint(1, 3))
        claim: dict[str, str] = {name: thing[name] for name in names}
        if true:
            return claim
        claim[names[0]] = choose_other(VALUES[names[0]], claim[names[0]], rng)
        if not those(scene, claim):
            return claim


def predicate(name: Attribute, value: str, rng: Random) -> str:
    match name:
        case "shape":
            return article(value)
        case "colour":
            return value
        case "size":
            return rng.choice(SIZE_PHRASES[value])
        case "place":
            return rng.choice(PLACE_PHRASES[value])
        case _:
            assert_never(name)


def article(phrase: str) -> str:
    return f"an {phrase}" if phrase.startswith("o") else f"a {phrase}"


SINGULARS = {plural: shape for shape, plural in PLURALS.items()}


def thing_pattern(suffix: str = "", noun: str = "thing", shapes: tuple[str, ...] = SHAPE_NAMES) -> str:
    """Returns the pattern of the words of `describe`."""
    size, colour, shape, place = (
        slot_pattern("size" + suffix, all_phrases(SIZE_PHRASES)),
        slot_pattern("colour" + suffix, COLOURS),
        slot_pattern("shape" + suffix, shapes),
        slot_pattern("place" + suffix, all_phrases(PLACE_PHRASES)),
    )
    return f"(?:{size} )?(?:{colour} )?(?:{noun}|{shape})(?: {place})?"


def patterns() -> Iterator[tuple[QuestionKind, re.Pattern[str]]]:
    """Yields the pattern of each form of a question, with its kind."""

    for kind, forms in FORMS.items():
        for form in forms:
            yield kind, re.compile(form.replace("?", r"\??").format(thing=f"the {thing_pattern()}"))
    for form in GROUND_FORMS:
        yield "ground", re.compile(form.replace("?", r"\??"))
    things = thing_pattern(noun="things", shapes=tuple(SINGULARS))
    yield "number", re.compile(NUMBER_FORM.replace("?", r"\??").format(things=things))
    ground = slot_pattern("ground", GROUNDS)
    yield "yes/no", re.compile(rf"is the (?:back)?ground {ground}\??")
    yield "yes/no", re.compile(rf"is (?P<exists>there) an? {thing_pattern()}\??")
    relation = slot_pattern("relation", PLACES_BY_RELATION)
    yield "yes/no", re.compile(rf"is the {thing_pattern()} {relation} the {thing_pattern('2')}\??")
    claims = (
        slot_pattern("is_colour", COLOURS),
        slot_pattern("is_size", all_phrases(SIZE_PHRASES)),
        slot_pattern("is_place", all_phrases(PLACE_PHRASES)),
        f"an? {slot_pattern('is_shape', SHAPE_NAMES)}",
    )
    yield "yes/no", re.compile(rf"is the {thing_pattern()} (?:{'|'.join(claims)})\??")


PATTERNS = tuple(patterns())
