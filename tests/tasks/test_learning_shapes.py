"""Each task learns a simple part of the world of shapes in a few steps, and then does better than without a look at
images that it has not seen: recipes, models, losses, predictions and scores together.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from random import Random

import pytest
import torch
from learning import descend, small_text
from torch import Tensor

from blip.data.images import decode
from blip.data.tokenizer import Tokenizer
from blip.data.transforms import eval_transform
from blip.datasets.shapes import ShapesConfig, random_scene, render_scene, task_samples
from blip.datasets.shapes.scenes import GROUNDS
from blip.models.med import MEDConfig, SpecialTokens
from blip.models.vision import VisionConfig
from blip.shards.sample import Sample
from blip.tasks.alignment import AlignmentConfig
from blip.tasks.captioning import CaptioningConfig
from blip.tasks.config import TaskConfig
from blip.tasks.dialog import DialogConfig
from blip.tasks.nlvr import NLVRConfig
from blip.tasks.retrieval import RetrievalConfig
from blip.tasks.task import EvaluableTask
from blip.tasks.video import VideoQAConfig, VideoRetrievalConfig
from blip.tasks.vqa import VQAConfig

SIZE = 24
WORLD = ShapesConfig(gold=300, test=60, size=SIZE)
ALIGNMENT = AlignmentConfig(
    queue=32, temperature=0.1, learn_temperature=False, momentum=0.9, alpha=0.0, same_image="positive"
)
SEEN_AT_ONCE = ("ground", "size")
"""Kinds of questions whose answers are learnt first."""
Scores = dict[str, float]


def view(image: bytes) -> Tensor:
    return eval_transform(SIZE)(decode(image))


def learnt(cfg: TaskConfig, samples: Sequence[Sample], steps: int, lr: float = 5e-3) -> EvaluableTask:
    """Returns a task after some steps from random weights."""
    words = chain.from_iterable([*s.texts, *s.meta.get("answers", []), *s.meta.get("words", [])] for s in samples)
    tokenizer = Tokenizer.train([word.replace("?", "") for word in words], 256)
    tokens = SpecialTokens(
        pad=tokenizer.pad, cls=tokenizer.cls, sep=tokenizer.sep, dec=tokenizer.dec, enc=tokenizer.enc
    )
    vision = VisionConfig(size=SIZE, patch=8, width=32, depth=2, heads=2, init_std=0.18, position_std=1.0)
    text = small_text(tokenizer.vocab_size)
    torch.manual_seed(0)
    task = cfg.build_task(cfg.build_model(MEDConfig(vision=vision, text=text, tokens=tokens, embed=32)), tokenizer)
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=lr)
    descend(task, optimizer, samples, view, steps, lr)
    assert isinstance(task, EvaluableTask)
    return task.eval()


def judged(task: EvaluableTask, samples: Sequence[Sample]) -> tuple[Scores, Scores]:
    """Returns the scores of a task, and those without a look at the images."""
    batch = task.collate([task.whole(sample, view) for sample in samples])
    found = task.predict(batch)
    if task.needs_rerank:
        found = task.rerank(found)(batch, range(len(found)))
    return dict(task.score(found)), dict(task.baseline(found))


def of_kinds(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.meta["kind"] in SEEN_AT_ONCE]


def test_retrieval_finds_images_texts_and_clips():
    train, test = (list(task_samples("retrieval", split, WORLD)) for split in ("train", "test"))
    task = learnt(RetrievalConfig(alignment=ALIGNMENT, rerank=8), train, steps=60)
    scores, chance = judged(task, test)
    assert scores["mean"] > 3 * chance["mean"]
    clips = VideoRetrievalConfig(alignment=ALIGNMENT, rerank=8).build_task(task.model, task.tokenizer).eval()
    scores, chance = judged(clips, list(task_samples("video_retrieval", "test", WORLD)))
    assert scores["mean"] > 2 * chance["mean"]
    assert scores["median_rank"] < chance["median_rank"] / 2


def test_captions_fit_better_than_those_of_other_images():
    train, test = (list(task_samples("captioning", split, WORLD)) for split in ("train", "test"))
    scores, chance = judged(learnt(CaptioningConfig(prompt="", smoothing=0.0), train, steps=100), test)
    assert scores["cider"] > 1.5 * chance["cider"]


def test_answers_are_better_than_the_most_frequent_ones_to_each_kind_of_question_of_clips_too():
    train, test = (of_kinds(list(task_samples("vqa", split, WORLD))) for split in ("train", "test"))
    task = learnt(VQAConfig(smoothing=0.0), train, steps=60)
    scores, chance = judged(task, test)
    assert scores["accuracy"] > chance["accuracy"] + 20
    assert scores["accuracy_ground"] > 80 > 2 * chance["accuracy_ground"]
    clips = VideoQAConfig().build_task(task.model, task.tokenizer).eval()
    scores, chance = judged(clips, of_kinds(list(task_samples("video_qa", "test", WORLD))))
    assert scores["accuracy"] > chance["accuracy"] + 10


def ground_pair(rng: Random) -> Sample:
    """Returns a statement about the grounds of two pictures, as often true as not."""
    left, right = random_scene(rng), random_scene(rng)
    said = left["ground"] if rng.random() < 0.5 else rng.choice([name for name in GROUNDS if name != left["ground"]])
    images = [render_scene(scene, rng, SIZE) for scene in (left, right)]
    text = f"the left picture shows a {said} ground"
    return Sample(str(rng.random()), images, [text], {"label": int(said == left["ground"])})


def ground_dialog(rng: Random) -> Sample:
    """Returns a dialog of one round, about the ground, which the caption does not name."""
    scene = random_scene(rng)
    options = rng.sample(tuple(GROUNDS), len(GROUNDS))
    question = "what colour is the ground?"
    one = {"question": question, "answer": scene["ground"], "options": options}
    meta = {"rounds": [{**one, "correct": options.index(scene["ground"])}], "words": [question, *options]}
    return Sample(str(rng.random()), [render_scene(scene, rng, SIZE)], ["a thing"], meta)


def drawn(make: Callable[[Random], Sample], split: str, count: int) -> list[Sample]:
    rng = Random(split)
    return [make(rng) for _ in range(count)]


def test_statements_about_two_images_are_told_apart():
    scores, chance = judged(
        learnt(NLVRConfig(), drawn(ground_pair, "train", 300), steps=150, lr=3e-3), drawn(ground_pair, "test", 200)
    )
    assert scores["accuracy"] > chance["accuracy"] + 20


def test_the_true_answer_of_a_dialog_comes_first():
    cfg = DialogConfig(tokens=32, negatives=2)
    scores, chance = judged(
        learnt(cfg, drawn(ground_dialog, "train", 300), steps=60), drawn(ground_dialog, "test", 100)
    )
    assert chance["mrr"] == pytest.approx(100 * (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5)
    assert scores["mrr"] > chance["mrr"] + 20
