"""Visual dialog: ranks candidate answers to a question, given an image, its caption and the rounds before.

BLIP, section 5.5: the dialog encoder reads history, question and a candidate, and learns by ITM whether it is true.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blip.batch import Batch, Example, Tokens
from blip.data.tokenizer import Tokenizer, clean_caption, clean_question
from blip.data.transforms import normalise
from blip.metrics.dialog import dialog_scores, ndcg, random_order_scores, rank_of, ranking
from blip.models.dialog import DialogModel
from blip.models.med import MEDConfig
from blip.models.weights.load import TRAINING_STATE, Allowed
from blip.shards.sample import BadSample, Sample
from blip.tasks.annotations import is_amount
from blip.tasks.task import EvaluableTask, Prediction, ReadImage, TaskSettings, texts_of
from blip.tasks.text import TextLengths

SEPARATOR = " [SEP] "


class DialogConfig(TaskSettings):
    TRAINING: ClassVar = frozenset({"negatives"})
    TOWERS: ClassVar = ("visual_encoder", "text_encoder")
    TRAINED_ON: ClassVar = "`rounds` in its json, one with `options` and the position `correct` of the answer"
    SCORED_BY: ClassVar = "`rounds` in its json, one with `options`"
    DIFFERENCES: ClassVar = Allowed(
        unused=(*TRAINING_STATE, "vision_proj.*", "text_proj.*", "text_decoder.*", "lm_head.*"),
        missing=("caption_proj.*",),
    )
    type: Literal["dialog"] = "dialog"
    caption: TextLengths = TextLengths(words=40, tokens=40, pad="longest")
    tokens: int = Field(default=256, ge=8, le=1_000_000)
    """Maximum number of tokens of history, question and answer together; the oldest rounds are left out."""
    negatives: int = Field(default=3, ge=1, le=1000)
    """Wrong candidates of a question in training, drawn for each epoch."""
    chunk: int = Field(default=100, ge=1)
    """Candidates per forward pass in evaluation."""

    def build_model(self, model: MEDConfig) -> DialogModel:
        return DialogModel(model)

    def build_task(self, model: nn.Module, tokenizer: Tokenizer) -> "Dialog":
        assert isinstance(model, DialogModel)
        return Dialog(self, model, tokenizer)

    def check_trained(self, sample: Sample) -> None:
        super().check_trained(sample)
        rounds_to_learn(sample)

    def check_scored(self, sample: Sample) -> None:
        super().check_scored(sample)
        if not any(one.get("options") for one in rounds_of(sample)):
            raise BadSample("no round with candidates")

    def text_tokens(self) -> dict[str, int]:
        return {"caption.tokens": self.caption.tokens, "tokens": self.tokens}


@dataclass(frozen=True)
class DialogPrediction(Prediction):
    image_id: Any
    rounds: list[int]
    """The numbers, from 1, of the rounds that have candidates."""
    scores: list[list[float]]
    """The score of each candidate by round: the logit of a true answer less that of a wrong one."""
    correct: list[int | None]
    """The position of the true answer by round; None if it is not published."""
    relevance: list[list[float] | None]
    """The relevance of each candidate by round; None if it is not published."""


class Dialog(EvaluableTask[DialogModel, DialogPrediction]):
    """Trains a model to tell the true answer to a question of a dialog from wrong ones."""

    prediction = DialogPrediction

    def __init__(self, cfg: DialogConfig, model: DialogModel, tokenizer: Tokenizer):
        super().__init__()
        self.cfg = cfg
        self.model = model
        self.tokenizer = tokenizer

    def prepare(self, sample: Sample, view: ReadImage, rng: np.random.Generator) -> Example:
        """Returns the example of one round of a dialog, with its true answer and some wrong candidates.

        The metadata's `rounds` have `question`, `answer`, `options` and the position `correct` of the answer. Raises
        BadSample if no round has all of them.
        """
        example = self.whole(sample, view)
        rounds = example.meta["rounds"]
        number = int(rng.choice(rounds_to_learn(sample)))
        options, correct = rounds[number]["options"], rounds[number]["correct"]
        wrong = [option for i, option in enumerate(options) if i != correct]
        drawn = rng.choice(len(wrong), self.cfg.negatives, replace=len(wrong) < self.cfg.negatives).tolist()
        candidates = [options[correct], *(wrong[i] for i in drawn)]
        return replace(example, meta={**example.meta, "round": number, "candidates": candidates})

    def whole(self, sample: Sample, view: ReadImage) -> Example:
        rounds_of(sample)
        return Example(sample.key, view(sample.images[0]), texts_of(sample), sample.meta, sample.id)

    def collate(self, examples: list[Example]) -> Batch:
        """Returns a batch of dialogs with their captions as text; of examples from `prepare`, with their candidates."""
        captions = [clean_caption(e.texts[0], self.cfg.caption.words) for e in examples]
        text = self.tokenizer.encode(captions, self.cfg.caption.tokens, self.cfg.caption.pad)
        rows = [
            self.texts(e.meta["rounds"], e.meta["round"], e.meta["candidates"]) for e in examples if "round" in e.meta
        ]
        dialogs = self.tokenizer.encode([row for some in rows for row in some], self.cfg.tokens, "longest")
        return Batch.of(examples, text, dialogs=dialogs, meta=[e.meta for e in examples])

    def texts(self, rounds: Sequence[dict[str, Any]], number: int, candidates: Sequence[str]) -> list[str]:
        """Returns the history before a round, its question and each candidate, as the encoder reads them.

        The oldest rounds are left out where the longest candidate would not have room.
        """
        turns = [
            f"{clean_question(r['question'])}{SEPARATOR}{clean_caption(r.get('answer', ''))}" for r in rounds[:number]
        ]
        question = clean_question(rounds[number]["question"])
        answers = [clean_caption(candidate) for candidate in candidates]
        sizes = self.tokenizer.count([*turns, question, *answers])
        room = self.cfg.tokens - 1 - sizes[len(turns)] - 1 - max(sizes[len(turns) + 1 :]) - 1
        first = len(turns)
        while first and sizes[first - 1] + 1 <= room:
            first -= 1
            room -= sizes[first] + 1
        return [SEPARATOR.join([*turns[first:], question, answer]) for answer in answers]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the ITM loss over the candidates of all dialogs, the true one of each first."""
        assert batch.text is not None
        source, mask = self.model.encode(normalise(batch.images), batch.text)
        dialogs: Tokens = batch.extra["dialogs"]
        count = len(dialogs.ids) // len(batch)
        owner = torch.arange(len(batch), device=source.device).repeat_interleave(count)
        cross = [(k[owner], v[owner]) for k, v in self.model.text_encoder.cross_keys_values(source)]
        labels = torch.zeros(len(owner), dtype=torch.long, device=source.device)
        labels[::count] = 1
        return {"itm": F.cross_entropy(self.model.match(dialogs, cross, mask[owner]).float(), labels)}

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[DialogPrediction]:
        """Returns the scores of all candidates of every round that has some."""
        assert batch.text is not None
        source, mask = self.model.encode(normalise(batch.images), batch.text)
        found = []
        for key, row, seen, meta in zip(batch.keys, source, mask, batch.extra["meta"], strict=True):
            cross = self.model.text_encoder.cross_keys_values(row[seen][None])
            rounds = meta["rounds"]
            judged = [i for i, one in enumerate(rounds) if one.get("options")]
            scores = [self.candidate_scores(self.texts(rounds, i, rounds[i]["options"]), cross) for i in judged]
            found.append(
                DialogPrediction(
                    key,
                    meta.get("image_id", key),
                    [i + 1 for i in judged],
                    scores,
                    [rounds[i].get("correct") for i in judged],
                    [rounds[i].get("relevance") for i in judged],
                )
            )
        return found

    def candidate_scores(self, texts: list[str], cross: Any) -> list[float]:
        """Returns the scores of dialogs `texts` about one image, whose keys and values have one row."""
        scores: list[float] = []
        for first in range(0, len(texts), self.cfg.chunk):
            part = self.tokenizer.encode(texts[first : first + self.cfg.chunk], self.cfg.tokens, "longest")
            logits = self.model.match(part.to(cross[0][0].device), cross).float()
            scores += (logits[:, 1] - logits[:, 0]).tolist()
        return scores

    def score(self, predictions: list[DialogPrediction]) -> Iterator[tuple[str, float]]:
        """Yields MRR, R@1, 5, 10, the mean rank and NDCG over all rounds with published answers or relevances."""
        rounds = [
            (torch.tensor(scores), correct, relevance)
            for p in predictions
            for scores, correct, relevance in zip(p.scores, p.correct, p.relevance, strict=True)
        ]
        ranks = [rank_of(scores, correct) for scores, correct, _ in rounds if correct is not None]
        gains = [
            ndcg(scores, torch.tensor(relevance)) for scores, _, relevance in rounds if relevance and any(relevance)
        ]
        yield from dialog_scores(ranks, gains)

    def baseline(self, predictions: list[DialogPrediction]) -> Iterator[tuple[str, float]]:
        """Yields MRR, R@1, 5, 10 and the mean rank that a random order of the candidates has on average."""
        sizes = [
            len(scores)
            for p in predictions
            for scores, correct in zip(p.scores, p.correct, strict=True)
            if correct is not None
        ]
        yield from random_order_scores(sizes)

    def not_scored(self, predictions: list[DialogPrediction]) -> dict[str, str]:
        found = {}
        if all(correct is None for p in predictions for correct in p.correct):
            found["mrr"] = "no round has a published answer: neither MRR nor recall nor the mean rank is known"
        if not any(relevance and any(relevance) for p in predictions for relevance in p.relevance):
            found["ndcg"] = "no round has published relevances"
        return found

    def submission(self, predictions: list[DialogPrediction]) -> dict[str, Any]:
        """Returns the ranks that the challenge's server takes: of every candidate, from 1, by image and round."""
        ranks = [
            {"image_id": p.image_id, "round_id": number, "ranks": ranking(torch.tensor(scores)).tolist()}
            for p in predictions
            for number, scores in zip(p.rounds, p.scores, strict=True)
        ]
        return {"visdial_ranks.json": ranks}


def rounds_of(sample: Sample) -> list[dict[str, Any]]:
    """Returns the rounds of a sample's dialog. Raises BadSample if they are none."""
    rounds = sample.meta.get("rounds")
    if not isinstance(rounds, list) or not rounds or not all(map(is_round, rounds)):
        raise BadSample("rounds that are no dialog")
    return rounds


def rounds_to_learn(sample: Sample) -> list[int]:
    """Returns the positions of the rounds with an answer and wrong candidates. Raises BadSample if there are none."""
    rounds = rounds_of(sample)
    found = [i for i, one in enumerate(rounds) if len(one.get("options", ())) > 1 and "correct" in one]
    if not found:
        raise BadSample("no round with an answer and candidates")
    return found


def is_round(value: Any) -> TypeGuard[dict[str, Any]]:
    """Returns whether a value has the form of a round of a dialog."""
    if not isinstance(value, dict) or not all(isinstance(value.get(k, ""), str) for k in ("question", "answer")):
        return False
    if "question" not in value:
        return False
    options, correct = value.get("options", []), value.get("correct", 0)
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        return False
    relevance = value.get("relevance")
    if relevance is not None and (not isinstance(relevance, list) or len(relevance) != len(options)):
        return False
    if not all(map(is_amount, relevance or ())):
        return False
    return isinstance(correct, int) and (not options or 0 <= correct < len(options))
