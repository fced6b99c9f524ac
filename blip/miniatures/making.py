"""The making of all miniatures, a process each."""

from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import torch
from pydantic import Field

from blip.config import Config
from blip.miniatures.documents import documents
from blip.miniatures.language import MiniatureLanguageConfig, train_opt, train_t5
from blip.miniatures.vision import MiniatureVisionConfig, train_vision
from blip.miniatures.words import NEWLINE, train_words
from blip.progress import progress
from blip.results import Point

DOCUMENTS = 2000
"""Documents on which the tokenizer is trained."""


class MiniaturesConfig(Config):
    seed: int = Field(default=1000, ge=0, lt=2**63)
    """Random seed of scenes, texts and initial weights; not that of the data set, whose scenes they must not know."""
    two_objects: float = Field(default=0.1, ge=0, le=1)
    """Share of scenes with two objects."""
    vocabulary: int = Field(default=450, ge=300, le=10_000_000)
    """Most entries of the language models' vocabulary; 259 of them are bytes and special tokens."""
    vision: MiniatureVisionConfig = MiniatureVisionConfig()
    opt: MiniatureLanguageConfig = MiniatureLanguageConfig(steps=2000)
    """With half of these steps what it answers to soft prompts depends on how their training began."""
    t5: MiniatureLanguageConfig = MiniatureLanguageConfig(dialogues=0.75)


def make_miniatures(cfg: MiniaturesConfig, out: Path) -> dict[str, list[Point]]:
    """Trains `vision`, `t5` and `opt`, saves each in its folder below `out`, and returns the curve of each one's loss.

    Each trains on one thread, so that the result does not depend on the machine's number of cores.
    """
    read = islice(documents(cfg.seed, cfg.two_objects), DOCUMENTS)
    texts = (f"{document.context} {document.continuation}{NEWLINE}" for document in read)
    words = train_words(texts, cfg.vocabulary)
    shared = {"seed": cfg.seed, "two_objects": cfg.two_objects}
    jobs = {
        "vision": partial(train_vision, cfg.vision, **shared, out=out / "vision"),
        "opt": partial(train_opt, cfg.opt, words, **shared, out=out / "opt"),
        "t5": partial(train_t5, cfg.t5, words, **shared, out=out / "t5"),
    }
    # all at once, also on fewer cores: one that waited for a free core would leave another idle at the end
    pool = ProcessPoolExecutor(len(jobs), get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,))
    with pool, progress(len(jobs), "frozen models", unit="models") as bar:
        started = {pool.submit(job): name for name, job in jobs.items()}
        curves = {}
        for done in as_completed(started):
            curves[started[done]] = done.result()
            bar.advance(1)
    return {name: curves[name] for name in sorted(jobs)}
