"""The world of shapes as data sets of the downstream tasks: every sample carries its truth, for evaluation alone."""

from collections.abc import Iterator
from typing import Literal, assert_never

from blip.datasets.shapes.clips import clip_frames
from blip.datasets.shapes.dialogs import talk
from blip.datasets.shapes.pairs import draw_pair
from blip.datasets.shapes.questions import ask
from blip.datasets.shapes.scenes import random_scene, render_scene
from blip.datasets.shapes.sentences import write_caption
from blip.datasets.shapes.splits import (
    ShapesConfig,
    gold_samples,
    image_rng,
    question_samples,
    test_samples,
)
from blip.shards.sample import Sample

ShapesTaskName = Literal["retrieval", "captioning", "vqa", "nlvr", "dialog", "video_retrieval", "video_qa"]
Split = Literal["train", "test"]
CLIP_FRAMES = 4
PAIRS: dict[Split, int] = {"train": 4, "test": 12}
"""Statements about two pictures for each image of the other tasks: a label tells less than a caption."""
MOVING = {"left", "right", "top", "upper", "bottom", "lower", "middle", "centre"}
"""Words of places, which a thing in a clip has one after the other."""


def task_samples(task: ShapesTaskName, split: Split, cfg: ShapesConfig) -> Iterator[Sample]:
    """Yields the samples of a task: of `cfg.gold` images, pairs, dialogs or clips to train on, of `cfg.test` to judge.

    Questions are four an image, statements about pairs as `PAIRS` says. Images of the splits differ; those of gold and
    test are the bootstrap's.
    """
    count = cfg.gold if split == "train" else cfg.test
    match task:
        case "retrieval" | "captioning":
            return gold_samples(cfg) if split == "train" else test_samples(cfg)
        case "vqa":
            return question_samples(cfg, "gold" if split == "train" else "test")
        case "nlvr":
            return (pair_sample(cfg, split, i) for i in range(PAIRS[split] * count))
        case "dialog":
            return (dialog_sample(cfg, split, i) for i in range(count))
        case "video_retrieval":
            return (clip_sample(cfg, split, i) for i in range(count))
        case "video_qa":
            return (clip_question(cfg, split, i) for i in range(count))
        case _:
            assert_never(task)


def pair_sample(cfg: ShapesConfig, split: Split, index: int) -> Sample:
    """Returns a statement about two pictures of one thing each."""
    rng = image_rng(cfg, f"{split} pair", index)
    pair = draw_pair(rng)
    images = [render_scene(scene, rng, cfg.size) for scene in (pair.left, pair.right)]
    meta = {"label": int(pair.true), "truth": {"left": {**pair.left}, "right": {**pair.right}}}
    return Sample(f"{split}-{index:06d}", images, [pair.text], meta)


def dialog_sample(cfg: ShapesConfig, split: Split, index: int) -> Sample:
    """Returns a dialog about one of two things of a picture."""
    rng = image_rng(cfg, f"{split} dialog", index)
    scene = random_scene(rng, two_objects=1.0)
    image = render_scene(scene, rng, cfg.size)
    caption = write_caption(scene, rng)
    return Sample(
        f"{split}-{index:06d}", [image], [caption], {"image_id": index, "rounds": talk(scene, rng), "truth": {**scene}}
    )


def clip_sample(cfg: ShapesConfig, split: Split, index: int) -> Sample:
    """Returns a clip of one thing that moves, with a caption that is true of all of its frames."""
    rng = image_rng(cfg, f"{split} clip", index)
    scene = random_scene(rng)
    thing = scene["objects"][0]
    frames = clip_frames(scene, rng, cfg.size, CLIP_FRAMES)
    caption = f"a {thing['size']} {thing['colour']} {thing['shape']} on a {scene['ground']} ground"
    return Sample(f"{split}-{index:06d}", frames, [caption], {"video_id": index, "truth": {**scene}})


def clip_question(cfg: ShapesConfig, split: Split, index: int) -> Sample:
    """Returns a clip with a question about what does not change: colour, shape, size or ground."""
    rng = image_rng(cfg, f"{split} clip", index)
    scene = random_scene(rng)
    frames = clip_frames(scene, rng, cfg.size, CLIP_FRAMES)
    while True:
        question = ask(scene, rng, rng.choice(("colour", "shape", "size", "ground")))
        if not MOVING & set(question.text.removesuffix("?").split()):
            break
    meta = {"question_id": index, "answers": [question.answer], "kind": question.kind, "truth": {**scene}}
    return Sample(f"{split}-{index:06d}", frames, [question.text], meta)
