"""The splits of the embedded data set: clean gold, noisy web, and test."""

from collections.abc import Iterator
from random import Random
from typing import Any, Literal

from pydantic import Field

from blip.config import Config
from blip.datasets.shapes.questions import Question, ask_several
from blip.datasets.shapes.scenes import Scene, change_attribute, random_scene, render_scene
from blip.datasets.shapes.sentences import is_true, write_caption
from blip.shards.sample import Sample


class ShapesConfig(Config):
    """Size and noise of the embedded data set."""

    gold: int = Field(default=3000, ge=0, le=100_000_000)
    """Images with five true captions each."""
    web: int = Field(default=8000, ge=0, le=100_000_000)
    """Images with one text each, a share of which is wrong."""
    test: int = Field(default=300, ge=0, le=100_000_000)
    """Images with five true captions each, for evaluation."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Random seed; an image depends only on seed, split and its number."""
    size: int = Field(default=32, ge=16, le=4096)
    """Side of the images, in pixels."""
    noise: float = Field(default=0.5, ge=0, le=1)
    """Share of wrong texts in web."""
    two_objects: float = Field(default=0.1, ge=0, le=1)
    """Share of scenes with two objects."""
    questions: int = Field(default=0, ge=0, le=100)
    """Questions about each image of test, which its json then has with their answers."""


NoiseKind = Literal["other image", "advert", "changed attribute"]
NOISE_KINDS: tuple[NoiseKind, ...] = ("other image", "other image", "advert", "changed attribute", "changed attribute")
"""Kinds of wrong texts, in proportion."""
NOISE_BLOCK = 20
"""Consecutive images in which the share of wrong texts is exact; which of them are wrong is random."""
CAPTIONS_PER_IMAGE = 5
"""As in COCO."""
ANNOTATORS = 10
"""As in VQAv2; all of them give the true answer."""
ADVERTS = (
    "buy now at the best price",
    "free shipping on all orders",
    "click here for more photos",
    "new arrivals of the summer collection",
    "sale up to 70 percent off",
    "stock photo {} royalty free",
    "wallpaper {} hd free download",
    "IMG_{}.JPG",
    "DSC{}.jpg",
    "untitled-{}.png",
    "screenshot {}.png",
)


def gold_samples(cfg: ShapesConfig) -> Iterator[Sample]:
    """Yields images with five different true captions."""
    return (captioned_sample(cfg, "gold", i) for i in range(cfg.gold))


def test_samples(cfg: ShapesConfig) -> Iterator[Sample]:
    """As `gold_samples`, with other images, and with `cfg.questions` in the metadata of each."""
    for i in range(cfg.test):
        sample = captioned_sample(cfg, "test", i)
        if cfg.questions:
            asked = ask_several(sample.meta["truth"], image_rng(cfg, "test questions", i), cfg.questions)
            sample.meta["questions"] = [question_values(question) for question in asked]
        yield sample


def web_samples(cfg: ShapesConfig) -> Iterator[Sample]:
    """Yields images with one text each, of which `cfg.noise` are wrong: captions of other images, adverts, or captions
    with one attribute changed.

    The sample's truth also has `true`, and `noise`: the kind of a wrong text, else None.
    """
    for i in range(cfg.web):
        rng = image_rng(cfg, "web", i)
        noise = noise_kind(cfg, i)
        scene = random_scene(rng, cfg.two_objects)
        image = render_scene(scene, rng, cfg.size)
        text = write_caption(scene, rng) if noise is None else wrong_text(scene, noise, rng, cfg)
        yield Sample(f"web-{i:06d}", [image], [text], {"truth": {**scene, "true": noise is None, "noise": noise}})


def question_samples(cfg: ShapesConfig, split: Literal["gold", "test"], per_image: int = 4) -> Iterator[Sample]:
    """Yields the images of a split once for each of their questions.

    The text is the question; `meta` has the annotators' `answers`, the `kind` of the question, the number `image` of
    the image in its split, and the truth.
    """
    for i in range(cfg.gold if split == "gold" else cfg.test):
        rng = image_rng(cfg, split, i)
        scene = random_scene(rng, cfg.two_objects)
        image = render_scene(scene, rng, cfg.size)
        for number, question in enumerate(ask_several(scene, image_rng(cfg, f"{split} questions", i), per_image)):
            values = question_values(question)
            text = values.pop("question")
            yield Sample(f"{split}-{i:06d}-{number}", [image], [text], {**values, "image": i, "truth": {**scene}})


def question_values(question: Question) -> dict[str, Any]:
    """Returns a question as it stands in a sample's json."""
    return {"question": question.text, "answers": [question.answer] * ANNOTATORS, "kind": question.kind}


def captioned_sample(cfg: ShapesConfig, split: str, index: int) -> Sample:
    rng = image_rng(cfg, split, index)
    scene = random_scene(rng, cfg.two_objects)
    image = render_scene(scene, rng, cfg.size)
    captions: dict[str, None] = {}
    while len(captions) < CAPTIONS_PER_IMAGE:
        captions[write_caption(scene, rng)] = None
    return Sample(f"{split}-{index:06d}", [image], list(captions), {"truth": {**scene}})


def image_rng(cfg: ShapesConfig, split: str, index: int) -> Random:
    return Random(f"{cfg.seed} {split} {index}")


def noise_kind(cfg: ShapesConfig, index: int) -> NoiseKind | None:
    """Returns the kind of noise of a web text; None if the text is true."""
    block, place = divmod(index, NOISE_BLOCK)
    wrong = round((block + 1) * NOISE_BLOCK * cfg.noise) - round(block * NOISE_BLOCK * cfg.noise)
    rank = image_rng(cfg, "noise", block).sample(range(NOISE_BLOCK), NOISE_BLOCK)[place]
    return NOISE_KINDS[rank * len(NOISE_KINDS) // wrong] if rank < wrong else None


def wrong_text(scene: Scene, noise: NoiseKind, rng: Random, cfg: ShapesConfig) -> str:
    """Returns a text that is not true of a scene; texts that are true by accident are drawn again."""
    if noise == "advert":
        return rng.choice(ADVERTS).format(rng.randrange(1000, 10000))
    while True:
        other = random_scene(rng, cfg.two_objects) if noise == "other image" else change_attribute(scene, rng)
        text = write_caption(other, rng)
        if not is_true(scene, text):
            return text
