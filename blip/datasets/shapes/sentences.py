"""The grammar of scenes: generates true sentences, and parses texts to decide whether they are true."""

import re
from collections.abc import Iterable, Mapping
from itertools import permutations
from random import Random
from string import Formatter
from typing import NamedTuple

from blip.data.tokenizer import clean_caption
from blip.datasets.shapes.scenes import COLOURS, GROUNDS, SHAPE_NAMES, Scene, Thing

SIZE_PHRASES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
PLACE_PHRASES = {
    "left": ("on the left", "at the left side"),
    "right": ("on the right", "at the right side"),
    "top": ("at the top", "in the upper part"),
    "bottom": ("at the bottom", "in the lower part"),
    "middle": ("in the middle", "in the centre"),
}
RELATION_PHRASES = {
    ("left", "right"): ("left of", "to the left of"),
    ("right", "left"): ("right of", "to the right of"),
    ("top", "bottom"): ("above", "higher than"),
    ("bottom", "top"): ("below", "under"),
}
"""Relations of a thing to another one, by the places of both."""
GROUND_PHRASES = {
    ground: (f"on a {ground} ground", f"on {ground}", f"against a {ground} background") for ground in GROUNDS
}
MENTIONED = 0.97
"""Probability that a caption mentions each of size, place and ground: a filter must learn to judge each of them."""

FORMS = (
    "{thing}",
    "{thing} {place}",
    "{thing} {ground}",
    "{thing} {place} {ground}",
    "{thing} {ground} {place}",
    "{thing} {place} of a {hue} picture",
    "{place} {thing}",
    "{place} {thing} {ground}",
    "{place} {ground} {thing}",
    "{ground} {thing}",
    "{ground} {thing} {place}",
    "{ground} {place} {thing}",
    "a {hue} picture with {thing}",
    "a {hue} picture with {thing} {place}",
    "{thing} and {other}",
    "{thing} and {other} {ground}",
    "{ground} {thing} and {other}",
    "{thing} {relation} {other}",
    "{thing} {relation} {other} {ground}",
    "{ground} {thing} {relation} {other}",
    "a {hue} picture with {thing} {relation} {other}",
    "{thing} {place} and {other} {there}",
    "{thing} {place} and {other} {there} {ground}",
    "{ground} {thing} {place} and {other} {there}",
    "{place} {thing} and {there} {other}",
    "{place} {thing} and {there} {other} {ground}",
)
"""Sentence templates; `hue` is the bare name of the ground, `there` the place of the other thing."""
OPENERS = ("there is ", "a photo of ", "this picture shows ")
"""Optional before the thing in sentences that start with it."""
VERBS = ("there is ", "is ", "we see ")
"""Optional before the thing in sentences that start with its place or its ground."""


def openers_of(form: str) -> tuple[str, ...]:
    """Returns the phrases that may precede the thing in a template."""
    if "picture" in form:
        return ()
    return OPENERS if form.startswith("{thing}") else VERBS


def slots_of(form: str) -> frozenset[str]:
    """Returns the facts that a template mentions."""
    return frozenset("ground" if slot == "hue" else slot for _, slot, _, _ in Formatter().parse(form) if slot)


FORMS_BY_SLOTS = {slots: [form for form in FORMS if slots_of(form) == slots] for slots in map(slots_of, FORMS)}


def write_caption(scene: Scene, rng: Random) -> str:
    """Returns a true sentence about a scene; of two objects it mentions both, or one."""
    mentioned = scene["objects"] if rng.random() < 0.75 else scene["objects"][:1]
    first, *others = rng.sample(mentioned, k=len(mentioned))
    words = {
        "thing": noun_phrase(first, rng),
        "place": rng.choice(PLACE_PHRASES[first["place"]]),
        "ground": rng.choice(GROUND_PHRASES[scene["ground"]]),
        "hue": scene["ground"],
    }
    placing = [{"place"}]
    for other in others:
        words["other"] = noun_phrase(other, rng)
        words["there"] = rng.choice(PLACE_PHRASES[other["place"]])
        words["relation"] = rng.choice(RELATION_PHRASES[first["place"], other["place"]])
        placing = [{"place", "there"}, {"relation"}]
    slots = {"thing", "other"} & words.keys()
    if rng.random() < MENTIONED:
        slots |= rng.choice(placing)
    if rng.random() < MENTIONED:
        slots |= {"ground"}
    form = rng.choice(FORMS_BY_SLOTS[frozenset(slots)])
    openers = openers_of(form)
    if openers and rng.random() < 0.5:
        words["thing"] = rng.choice(openers) + words["thing"]
    return form.format(**words)


def noun_phrase(thing: Thing, rng: Random) -> str:
    """Returns a noun phrase with its article."""
    size = rng.choice(SIZE_PHRASES[thing["size"]]) + " " if rng.random() < MENTIONED else ""
    phrase = f"{size}{thing['colour']} {thing['shape']}"
    return f"an {phrase}" if phrase.startswith("o") else f"a {phrase}"


MEANING_BY_PHRASE = {
    words: meaning
    for synonyms in (SIZE_PHRASES, PLACE_PHRASES, GROUND_PHRASES)
    for meaning, phrases in synonyms.items()
    for words in phrases
}
PLACES_BY_RELATION = {words: places for places, phrases in RELATION_PHRASES.items() for words in phrases}


class Claims(NamedTuple):
    """The claims of a sentence: some attributes of each thing, and perhaps the ground."""

    things: tuple[dict[str, str], ...]
    ground: str | None


def is_true(scene: Scene, text: str) -> bool:
    """Returns whether every claim of a text holds for a scene; a text outside of the grammar is not true."""
    claims = parse_claims(text)
    if claims is None or claims.ground not in (None, scene["ground"]):
        return False
    return any(
        all(claim.items() <= item.items() for claim, item in zip(claims.things, items, strict=True))
        for items in permutations(scene["objects"], len(claims.things))
    )


def parse_claims(text: str) -> Claims | None:
    """Returns the claims of a sentence; None if the text is outside of the grammar."""
    text = clean_caption(text)
    matches = (pattern.fullmatch(text) for pattern in PATTERNS)
    match = next((match for match in matches if match is not None), None)
    if match is None:
        return None
    said = {slot: MEANING_BY_PHRASE.get(words, words) for slot, words in match.groupdict().items() if words}
    ground = said.pop("ground", None)
    relation = said.pop("relation", None)
    if relation:
        said["place"], said["place2"] = PLACES_BY_RELATION[relation]
    first = {slot: meaning for slot, meaning in said.items() if not slot.endswith("2")}
    second = {slot.removesuffix("2"): meaning for slot, meaning in said.items() if slot.endswith("2")}
    return Claims((first, second) if second else (first,), ground)


def slot_pattern(slot: str, phrases: Iterable[str]) -> str:
    """Returns the pattern of a slot; longer phrases are tried first."""
    return f"(?P<{slot}>{'|'.join(sorted(phrases, key=len, reverse=True))})"


def all_phrases(synonyms: Mapping[str, Iterable[str]]) -> list[str]:
    return [words for phrases in synonyms.values() for words in phrases]


def noun_pattern(suffix: str = "") -> str:
    """Returns the pattern of a noun phrase; size and colour are optional."""
    size, colour, shape = (
        slot_pattern("size" + suffix, all_phrases(SIZE_PHRASES)),
        slot_pattern("colour" + suffix, COLOURS),
        slot_pattern("shape" + suffix, SHAPE_NAMES),
    )
    return f"an? (?:{size} )?(?:{colour} )?{shape}"


def sentence_pattern(form: str) -> re.Pattern[str]:
    """Returns the pattern of a template; openers and verbs are accepted in all of them."""
    return re.compile(
        form.format(
            thing=f"(?:{'|'.join((*OPENERS, *VERBS))})?{noun_pattern()}",
            other=noun_pattern("2"),
            place=slot_pattern("place", all_phrases(PLACE_PHRASES)),
            there=slot_pattern("place2", all_phrases(PLACE_PHRASES)),
            relation=slot_pattern("relation", PLACES_BY_RELATION),
            ground=slot_pattern("ground", all_phrases(GROUND_PHRASES)),
            hue=slot_pattern("ground", GROUNDS),
        )
    )


PATTERNS = [sentence_pattern(form) for form in FORMS]
