"""Visual question answering, by generation or by ranking a list of answers (BLIP, section 5.3)."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from blip.batch import Batch, Example, Tokens
from blip.data.tokenizer import Tokenizer, clean_question
from blip.data.transforms import normalise
from blip.metrics.vqa import direct_answer_accuracy, vqa_accuracy
from blip.models.bert import KeysValues, KVCache
from blip.models.generation import Beam, beam_search, check_room
from blip.models.med import MEDConfig
from blip.models.vqa import VQAModel
from blip.models.weights.load import HEADS, TRAINING_STATE, Allowed
from blip.objectives.language_modeling import next_token_targets, token_losses
from blip.shards.sample import BadSample, Sample
from blip.tasks.annotations import check_answers, check_texts, read_answers, weight_of
from blip.tasks.task import EvaluableTask, Prediction, ReadImage, TaskSettings
from blip.tasks.text import TextLengths


class VQAConfig(TaskSettings):
    TRAINING: ClassVar = frozenset({"smoothing"})
    TOWERS: ClassVar = ("visual_encoder", "text_encoder", "text_decoder")
    TRAINED_ON: ClassVar = "a question with `answers` in its json"
    SCORED_BY: ClassVar = (
        "a question with `answers` or `correct_choice` in its json, or with the `question_id` that a server knows it by"
    )
    DIFFERENCES: ClassVar = Allowed(unused=(*TRAINING_STATE, *HEADS))
    type: Literal["vqa"] = "vqa"
    question: TextLengths = TextLengths(words=50, tokens=35, pad="longest")
    answer_tokens: int = Field(default=20, ge=3, le=1_000_000)
    """Maximum number of answer tokens, including [CLS] and [SEP]; further tokens are cut."""
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing of the answer loss."""
    inference: Literal["generate", "rank"] = "generate"
    """Generate the answer, or rank the answers in `answer_list`."""
    decoding: Beam = Beam(beams=3, min_length=1, max_length=10)
    answer_list: Path | None = None
    """JSON list of the answers to rank."""
    rank_candidates: int = Field(default=128, ge=1)
    """Number of answers scored in full, the best by their first token."""
    rank_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing in the score of a ranked answer.

    The reference's 0.1 favours short answers; use it to reproduce its published scores.
    """
    vqa_full_mask: bool = False
    """Attend to the question's padding in generation, as the reference does, to reproduce its published scores."""

    @model_validator(mode="after")
    def list_to_rank(self) -> Self:
        if self.inference == "rank" and self.answer_list is None:
            raise ValueError("inference: rank needs answer_list, a JSON list of answers; or set inference: generate")
        return self

    def build_model(self, model: MEDConfig) -> VQAModel:
        return VQAModel(model)

    def build_task(self, model: nn.Module, tokenizer: Tokenizer) -> "VQA":
        assert isinstance(model, VQAModel)
        return VQA(self, model, tokenizer)

    def check_trained(self, sample: Sample) -> None:
        super().check_trained(sample)
        check_answers(sample)
        weight_of(sample.meta)

    def check_scored(self, sample: Sample) -> None:
        super().check_scored(sample)
        if not any(name in sample.meta for name in ("correct_choice", "question_id")):
            check_answers(sample)

    def text_tokens(self) -> dict[str, int]:
        return {"question.tokens": self.question.tokens, "answer_tokens": self.answer_tokens}

    def check_generation(self, positions: int) -> None:
        check_room(self.decoding, 1, positions)


@dataclass(frozen=True)
class VQAPrediction(Prediction):
    answer: str
    said: list[str]
    """The annotators' answers; none if they are not published."""
    question_id: str | int
    kind: str = ""
    """The kind of the question's answer, such as `yes/no`; empty if the data set names none."""
    choice: str | None = None
    """The likeliest of the question's own choices, if it has some."""
    correct: str | None = None
    """The correct one of them, if it is published."""
    difficult: bool = False
    """Whether the data set excludes the question from the accuracy of direct answers."""


class VQA(EvaluableTask[VQAModel, VQAPrediction]):
    """Trains a model to generate the answer to a question about an image.

    Each distinct answer is weighted by the share of annotators who gave it.
    """

    prediction = VQAPrediction

    def __init__(self, cfg: VQAConfig, model: VQAModel, tokenizer: Tokenizer):
        super().__init__()
        self.cfg = cfg
        self.model = model
        self.tokenizer = tokenizer
        self.answers: list[str] = read_answers(cfg.answer_list) if cfg.answer_list else []

    def prepare(self, sample: Sample, view: ReadImage, rng: np.random.Generator) -> Example:
        """Returns the example of a question, with its annotators' answers and weight in the metadata.

        Texts are the question, `answers` the annotators' answers, `weight` the loss weight of the sample, 1 by default.
        Raises BadSample if one is invalid.
        """
        check_answers(sample)
        weight_of(sample.meta)
        return super().prepare(sample, view, rng)

    def whole(self, sample: Sample, view: ReadImage) -> Example:
        """Returns the example of a question; its answers may be unknown, and the metadata may have its own `choices`.

        Raises BadSample if one of them is invalid.
        """
        answers, choices = sample.meta.get("answers", []), sample.meta.get("choices")
        check_texts(answers, "answer is not a text")
        weight_of(sample.meta)
        if choices is not None:
            check_texts(choices, "choice is not a text")
            correct = sample.meta.get("correct_choice", 0)
            if not isinstance(correct, int) or not 0 <= correct < len(choices):
                raise BadSample("correct choice is none of the choices")
        return super().whole(sample, view)

    def collate(self, examples: list[Example]) -> Batch:
        """Returns a batch of questions with their distinct answers.

        The text of an example is its question; its metadata contain `answers` and `weight`, as in `prepare`.
        """
        questions = [clean_question(e.texts[0], self.cfg.question.words) for e in examples]
        text = self.tokenizer.encode(questions, self.cfg.question.tokens, self.cfg.question.pad)
        said = [e.meta.get("answers", []) for e in examples]
        distinct = [(i, answer, count / len(s)) for i, s in enumerate(said) for answer, count in Counter(s).items()]
        weights = torch.tensor([share * weight_of(examples[i].meta) for i, _, share in distinct])
        owner = torch.tensor([i for i, _, _ in distinct], dtype=torch.long)
        return Batch.of(
            examples,
            text,
            answers=self.encode_answers([a for _, a, _ in distinct]),
            owner=owner,
            weights=weights,
            said=said,
            meta=[e.meta for e in examples],
        )

    def encode_answers(self, answers: list[str]) -> Tokens:
        return self.tokenizer.encode(answers, self.cfg.answer_tokens, "longest")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss, weighted per answer.

        `extra` holds the `answers` `(A, L)`, the row of each answer's question, `owner` `(A,)`, and the share of
        annotators times the sample's weight, `weights` `(A,)`.
        """
        assert batch.text is not None
        answers, owner = batch.extra["answers"], batch.extra["owner"]
        cross = select_rows(self.model.encode_question(normalise(batch.images), batch.text), owner)
        losses = self.answer_losses(answers, cross, batch.text.mask[owner], self.cfg.smoothing)
        return {"vqa": (batch.extra["weights"] * losses).sum() / len(batch)}

    def answer_losses(
        self, answers: Tokens, cross: list[KeysValues], question_mask: Tensor, smoothing: float
    ) -> Tensor:
        """Returns the label-smoothed cross-entropy `(A,)` of each answer, summed over its tokens."""
        logits = self.model.decode(answers, cross, question_mask)[:, :-1]
        return token_losses(logits, next_token_targets(answers.ids, answers.mask), smoothing).sum(1)

    @torch.no_grad()
    def generate(self, images: Tensor, question: Tokens) -> list[str]:
        """Generates answers to questions about uint8 images `(B, 3, H, W)`."""
        cross = self.model.encode_question(normalise(images), question)
        mask = torch.ones_like(question.mask) if self.cfg.vqa_full_mask else question.mask
        prompt = torch.full((len(images), 1), self.model.cfg.tokens.dec, device=images.device)

        def decode_step(ids: Tensor, cross: list[KeysValues], cache: KVCache) -> Tensor:
            return self.model.decode_step(ids, cross, cache, mask.repeat_interleave(len(ids) // len(mask), 0))

        return self.tokenizer.decode(
            beam_search(decode_step, prompt, cross, self.cfg.decoding, self.model.cfg.tokens.sep).ids
        )

    @torch.no_grad()
    def rank(self, images: Tensor, question: Tokens, answers: Tokens) -> Tensor:
        """Returns the index `(B,)` of the most likely of answers `(A, L)` for each question.

        The `rank_candidates` best answers by their first token are scored in full.
        """
        cross = self.model.encode_question(normalise(images), question)
        start = Tokens(answers.ids[:1, :1], answers.mask[:1, :1])[torch.zeros(len(images), dtype=torch.long)]
        first = self.model.decode(start, cross, question.mask)[:, 0].float().softmax(1)
        candidates = first[:, answers.ids[:, 1]].topk(min(self.cfg.rank_candidates, len(answers.ids)), dim=1).indices
        owner = torch.arange(len(images), device=images.device).repeat_interleave(candidates.shape[1])
        losses = self.answer_losses(
            answers[candidates.flatten()], select_rows(cross, owner), question.mask[owner], self.cfg.rank_smoothing
        )
        best = losses.view_as(candidates).argmin(1, keepdim=True)
        return candidates.gather(1, best)[:, 0]

    def predict(self, batch: Batch) -> list[VQAPrediction]:
        assert batch.text is not None
        match self.cfg.inference:
            case "generate":
                answers = self.generate(batch.images, batch.text)
            case "rank":
                choices = self.encode_answers(self.answers).to(batch.images.device)
                answers = [self.answers[i] for i in self.rank(batch.images, batch.text, choices).tolist()]
        chosen = self.choose(batch)
        found = []
        columns = zip(batch.keys, answers, batch.extra["said"], batch.extra["meta"], chosen, strict=True)
        for key, answer, said, meta, choice in columns:
            choices, correct = meta.get("choices"), meta.get("correct_choice")
            prediction = VQAPrediction(
                key,
                answer,
                said,
                question_id=meta.get("question_id", key),
                kind=str(meta.get("answer_type") or meta.get("kind") or ""),
                choice=choice,
                correct=None if choices is None or correct is None else choices[correct],
                difficult=bool(meta.get("difficult")),
            )
            found.append(prediction)
        return found

    @torch.no_grad()
    def choose(self, batch: Batch) -> list[str | None]:
        """Returns the likeliest of each question's own choices; None for a question without any."""
        assert batch.text is not None
        found: list[str | None] = []
        for row, meta in enumerate(batch.extra["meta"]):
            choices = meta.get("choices")
            if choices:
                one = slice(row, row + 1)
                answers = self.encode_answers(choices).to(batch.images.device)
                cross = self.model.encode_question(normalise(batch.images[one]), batch.text[one])
                owner = torch.zeros(len(choices), dtype=torch.long, device=batch.images.device)
                mask = batch.text.mask[one][owner]
                losses = self.answer_losses(answers, select_rows(cross, owner), mask, self.cfg.rank_smoothing)
                found.append(choices[int(losses.argmin())])
            else:
                found.append(None)
        return found

    def score(self, predictions: list[VQAPrediction]) -> Iterator[tuple[str, float]]:
        """Yields the accuracy in percent (arXiv 1505.00468), overall and by the kind of the answer.

        Of questions with choices, as A-OKVQA has them, it yields the accuracy of direct answers and that of choices
        instead (arXiv 2206.01718). Nothing is yielded of what is not published.
        """
        open_ended = [(p.kind, vqa_accuracy(p.answer, p.said)) for p in predictions if p.said and p.choice is None]
        if open_ended:
            yield "accuracy", mean(found for _, found in open_ended)
        for kind in sorted({kind for kind, _ in open_ended if kind}):
            name = f"accuracy_{re.sub(r'[^a-z0-9]+', '_', kind.lower())}"
            yield name, mean(found for other, found in open_ended if other == kind)
        direct = [p for p in predictions if p.said and p.choice is not None and not p.difficult]
        if direct:
            yield "direct_answer", mean(direct_answer_accuracy(p.answer, p.said) for p in direct)
        chosen = [p for p in predictions if p.correct is not None]
        if chosen:
            yield "multiple_choice", mean(100.0 * (p.choice == p.correct) for p in chosen)

    def baseline(self, predictions: list[VQAPrediction]) -> Iterator[tuple[str, float]]:
        """As `score`, of the answer that is most frequent among those to questions of the same kind."""
        known = [p for p in predictions if p.said and p.choice is None]
        answers: dict[str, Counter[str]] = {}
        for p in known:
            answers.setdefault(p.kind, Counter()).update(p.said)
        common = {kind: found.most_common(1)[0][0] for kind, found in answers.items()}
        yield from self.score([replace(p, answer=common[p.kind]) for p in known])

    def not_scored(self, predictions: list[VQAPrediction]) -> dict[str, str]:
        asked = [p for p in predictions if p.choice is not None]
        found = {}
        if len(asked) < len(predictions) and not any(p.said for p in predictions if p.choice is None):
            found["accuracy"] = "no question has published answers"
        if asked and not any(p.said for p in asked):
            found["direct_answer"] = "no question has published answers"
        if asked and not any(p.correct is not None for p in asked):
            found["multiple_choice"] = "no question has a published choice"
        return found

    def submission(self, predictions: list[VQAPrediction]) -> dict[str, Any]:
        """Returns the results that the server of VQAv2 takes, or that of A-OKVQA for questions with choices."""
        if any(p.choice is not None for p in predictions):
            answers = {
                str(p.question_id): {"multiple_choice": p.choice, "direct_answer": p.answer} for p in predictions
            }
            return {"aokvqa_predictions.json": answers}
        return {"vqa_results.json": [{"question_id": p.question_id, "answer": p.answer} for p in predictions]}


def select_rows(cross: list[KeysValues], index: Tensor) -> list[KeysValues]:
    """Selects the same rows of every layer's keys and values."""
    return [(k[index], v[index]) for k, v in cross]
