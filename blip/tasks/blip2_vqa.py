"""Questions that a frozen language model answers about an image: by a prompt alone, or fine-tuned (BLIP-2, sections 4.1
and 4.3)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import field_validator
from torch import Tensor, nn

from blip.batch import Batch, Example, Tokens
from blip.config import ConfigError
from blip.data.tokenizer import Tokenizer, clean_question
from blip.metrics.vqa import vqa_accuracy
from blip.models.blip2 import Blip2, Blip2Config
from blip.models.generation import Beam, Decoding, Texts
from blip.models.image_encoder import load_image_encoder
from blip.models.language.language_model import WHOLE_TEXT
from blip.models.language.source import load_language_model
from blip.models.weights.load import Allowed
from blip.objectives.language_modeling import spoken_targets, token_losses
from blip.shards.sample import Sample
from blip.tasks.annotations import weight_of
from blip.tasks.blip2_stage2 import FIRST_STAGE, QFORMER_TEXT
from blip.tasks.questions import QUESTIONS, questions_of, questions_or_none
from blip.tasks.task import EvaluableTask, Prediction, ReadImage, TaskSettings
from blip.tasks.text import TextLengths

PROMPT, SHORT_PROMPT = "Question: {} Answer:", "Question: {} Short answer:"


class Blip2VQAConfig(TaskSettings):
    MODEL: ClassVar = Blip2Config
    TRAINING: ClassVar = frozenset({"text"})
    TOWERS: ClassVar = ("visual_encoder", "qformer")
    TRAINED_ON: ClassVar = "a question with `answers` in its json, or `questions` that have them"
    SCORED_BY: ClassVar = TRAINED_ON
    DIFFERENCES: ClassVar = Allowed(
        unused=(*FIRST_STAGE, "Qformer.*"), missing=("visual_encoder.*", "projection.*", *QFORMER_TEXT)
    )
    type: Literal["blip2_vqa"] = "blip2_vqa"
    prompt: str | None = None
    """What the language model reads before it answers; `{}` is the question. None is the paper's prompt:
    `Question: {} Answer:`
    of a causal model, `Question: {} Short answer:` of one with an encoder."""
    question: TextLengths = TextLengths(words=50, tokens=35, pad="longest")
    """Lengths of a question as the Q-Former reads it."""
    ask_qformer: bool = False
    """Whether the Q-Former reads the question beside the image, as in fine-tuning; not for answers by prompt alone."""
    text: TextLengths = TextLengths(words=50, tokens=96, pad="longest")
    """Lengths of prompt and answer, in the language model's tokens."""
    decoding: Decoding = Beam(beams=5, min_length=1, max_length=10, length_penalty=-1.0)
    """Decoding of answers; lengths are of new tokens. The paper's penalty of -1 favours short ones."""

    @field_validator("prompt")
    @classmethod
    def has_place(cls, value: str | None) -> str | None:
        if value is not None and value.count("{}") != 1:
            raise ValueError(f"prompt is {value!r}, must hold {{}} once, where the question goes")
        return value

    def build_model(self, model: Blip2Config) -> Blip2:
        if model.language_model is None:
            raise ConfigError(
                f"model.language_model has no value, but {self.type} needs one: set model.language_model.source"
            )
        language = load_language_model(model.language_model)
        return Blip2(model, load_image_encoder(model.vision), language, question=self.ask_qformer)

    def fitted(self, model: Blip2) -> Self:
        """Returns the settings with so few tokens for a prompt that the language model can read it and answer."""
        language = model.language_model
        if language.positions is None:
            return self
        answer = 0 if language.encoder_decoder else self.decoding.max_length
        tokens = min(self.text.tokens, language.positions - model.cfg.queries - answer)
        return self.model_copy(update={"text": self.text.model_copy(update={"tokens": max(1, tokens)})})

    def build_task(self, model: nn.Module, tokenizer: Tokenizer) -> "Blip2VQA":
        assert isinstance(model, Blip2)
        return Blip2VQA(self, model, tokenizer)

    def check_trained(self, sample: Sample) -> None:
        questions_of(sample.texts, sample.meta)

    def check_scored(self, sample: Sample) -> None:
        super().check_scored(sample)
        self.check_trained(sample)

    def text_tokens(self) -> dict[str, int]:
        return {"question.tokens": self.question.tokens} if self.ask_qformer else {}


@dataclass(frozen=True)
class Blip2VQAPrediction(Prediction):
    """The answers to all questions about an image."""

    id: str
    """The sample's id, unique over all shards."""
    questions: list[str]
    answers: list[str]
    said: list[list[str]]
    """The annotators' answers to each question."""
    kinds: list[str]
    """The kind of each question, such as `colour`; empty if the data set names none."""


@dataclass
class Asked:
    """The questions about the images of a batch, and the row of each one's image."""

    questions: list[str]
    said: list[list[str]]
    kinds: list[str]
    owner: Tensor
    weights: list[float]

    def to(self, device: Any) -> "Asked":
        return Asked(self.questions, self.said, self.kinds, self.owner.to(device), self.weights)


class Blip2VQA(EvaluableTask[Blip2, Blip2VQAPrediction]):
    """Answers questions, and trains to answer them.

    An image is encoded once for all questions about it, unless the Q-Former reads the question too.
    """

    prediction = Blip2VQAPrediction

    def __init__(self, cfg: Blip2VQAConfig, model: Blip2, tokenizer: Tokenizer):
        super().__init__()
        self.cfg = cfg
        self.model = model
        self.tokenizer = tokenizer
        of_paper = SHORT_PROMPT if model.language_model.encoder_decoder else PROMPT
        self.prompt = of_paper if cfg.prompt is None else cfg.prompt
        self.check(cfg.decoding)

    def check(self, decoding: Decoding) -> None:
        """Raises ConfigError if prompt and answer exceed `text.tokens` or what the language model can read."""
        language, queries = self.model.language_model, self.model.cfg.queries
        [prompt] = language.read([self.prompt.format("?")], WHOLE_TEXT)
        if len(prompt) + 2 > self.cfg.text.tokens:
            raise ConfigError(
                f"task.text.tokens is {self.cfg.text.tokens}, but the prompt takes {len(prompt)} of them, and an "
                f"answer and its end need two: set it to {len(prompt) + 2} or more, or shorten task.prompt"
            )
        language.check_room("task.text.tokens", queries, self.cfg.text.tokens)
        if language.encoder_decoder:
            language.check_room("task.decoding.max_length", 0, decoding.max_length)
        else:
            language.check_room(
                "task.text.tokens with task.decoding.max_length", queries, self.cfg.text.tokens + decoding.max_length
            )

    def prepare(self, sample: Sample, view: ReadImage, rng: np.random.Generator) -> Example:
        """Returns the example of one question about the image, a random one if there are several.

        Raises BadSample if the sample has no question with answers.
        """
        asked = questions_of(sample.texts, sample.meta)
        chosen = asked[int(rng.integers(len(asked)))]
        return Example(sample.key, view(sample.images[0]), [chosen["question"]], chosen, sample.id)

    def whole(self, sample: Sample, view: ReadImage) -> Example:
        """Returns the example of an image with its questions, or without any if it names none."""
        if sample.meta.get(QUESTIONS) or "answers" in sample.meta:
            questions_of(sample.texts, sample.meta)
        return super().whole(sample, view)

    def collate(self, examples: list[Example]) -> Batch:
        """Returns a batch with all questions about its images; in evaluation an image may have none."""
        asked = [(row, question) for row, example in enumerate(examples) for question in questions_or_none(example)]
        owner = torch.tensor([row for row, _ in asked], dtype=torch.long)
        questions = [clean_question(q["question"], self.cfg.question.words) for _, q in asked]
        said = [q["answers"] for _, q in asked]
        kinds = [str(q.get("kind", "")) for _, q in asked]
        weights = [weight_of(q) for _, q in asked]
        return Batch.of(examples, None, asked=Asked(questions, said, kinds, owner, weights))

    def soft_prompts(self, images: Tensor, questions: Sequence[str], owner: Tensor) -> Tensor:
        """Returns soft prompts `(A, Q, D)` of questions about uint8 images `(B, 3, H, W)`, `owner` `(A,)` of each."""
        image_tokens = self.model.encode_image(images)
        if not self.cfg.ask_qformer:
            return self.model.soft_prompts(image_tokens)[owner]
        return self.model.soft_prompts(image_tokens[owner], self.read(questions).to(images.device))

    def read(self, questions: Sequence[str]) -> Tokens:
        """Returns questions as the Q-Former reads them."""
        return self.tokenizer.encode(questions, self.cfg.question.tokens, self.cfg.question.pad)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss of each distinct answer, summed over its tokens and weighted by its share of annotators."""
        asked: Asked = batch.extra["asked"]
        counted = [
            (row, answer, count) for row, said in enumerate(asked.said) for answer, count in Counter(said).items()
        ]
        rows = torch.tensor([row for row, _, _ in counted], device=batch.images.device)
        weights = [count / len(asked.said[row]) * asked.weights[row] for row, _, count in counted]
        given = [self.prompt.format(asked.questions[row]) for row, _, _ in counted]
        language = self.model.language_model
        spoken = language.speak(given, [answer for _, answer, _ in counted], self.cfg.text.tokens)
        spoken = spoken.to(batch.images.device)
        soft = self.soft_prompts(batch.images, asked.questions, asked.owner)
        logits = language.logits(soft[rows], spoken)
        losses = token_losses(logits, spoken_targets(spoken.said.ids, spoken.said.mask, spoken.skip), 0.0).sum(1)
        return {"vqa": (torch.tensor(weights, device=losses.device) * losses).sum() / len(asked.questions)}

    @torch.no_grad()
    def converse(self, images: Tensor, questions: Sequence[Sequence[str]]) -> list[list[str]]:
        """Returns the answers to questions about each of uint8 images `(B, 3, H, W)`, asked one after the other.

        The model reads the questions before with its own answers, as in the paper's dialogues (BLIP-2, figure 4).
        Raises ConfigError if a dialogue is longer than `text.tokens`.
        """
        language = self.model.language_model
        said: list[list[str]] = [[] for _ in questions]
        for number in range(max(map(len, questions), default=0)):
            rows = [row for row, asked in enumerate(questions) if number < len(asked)]
            prompts = [self.dialogue(questions[row][: number + 1], said[row]) for row in rows]
            longest = max(map(len, language.read(prompts, WHOLE_TEXT)))
            if longest > self.cfg.text.tokens:
                raise ConfigError(
                    f"a dialogue of {number + 1} questions takes {longest} tokens, task.text.tokens is "
                    f"{self.cfg.text.tokens}: raise it, or ask fewer questions"
                )
            last = [clean_question(questions[row][number], self.cfg.question.words) for row in rows]
            soft = self.soft_prompts(images, last, torch.tensor(rows, device=images.device))
            answers = language.decode(self.generate(soft, prompts, self.cfg.decoding).ids)
            for row, answer in zip(rows, answers, strict=True):
                said[row].append(answer)
        return said

    def dialogue(self, questions: Sequence[str], answers: Sequence[str]) -> str:
        """Returns the prompt of the last question, after the others with their answers."""
        asked = [self.prompt.format(clean_question(question, self.cfg.question.words)) for question in questions]
        return " ".join([*(f"{prompt} {answer}" for prompt, answer in zip(asked, answers, strict=False)), asked[-1]])

    @torch.no_grad()
    def generate(self, soft: Tensor, prompts: Sequence[str], decoding: Decoding) -> Texts:
        """Generates texts after soft prompts `(B, Q, D)` and a prompt each."""
        return self.model.language_model.generate(soft, prompts, decoding, tokens=self.cfg.text.tokens)

    @torch.no_grad()
    def answer(self, images: Tensor, questions: Sequence[str], owner: Tensor) -> list[str]:
        """Returns the answers to questions about uint8 images `(B, 3, H, W)`, `owner` `(A,)` of each question."""
        prompts = [self.prompt.format(question) for question in questions]
        written = self.generate(self.soft_prompts(images, questions, owner), prompts, self.cfg.decoding)
        return self.model.language_model.decode(written.ids)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Blip2VQAPrediction]:
        asked: Asked = batch.extra["asked"]
        answers = self.answer(batch.images, asked.questions, asked.owner) if asked.questions else []
        owners = asked.owner.tolist()
        found = []
        for row, (key, name) in enumerate(zip(batch.keys, batch.ids, strict=True)):
            own = [number for number, owner in enumerate(owners) if owner == row]
            found.append(
                Blip2VQAPrediction(
                    key,
                    name,
                    questions=[asked.questions[number] for number in own],
                    answers=[answers[number] for number in own],
                    said=[asked.said[number] for number in own],
                    kinds=[asked.kinds[number] for number in own],
                )
            )
        return found

    def score(self, predictions: list[Blip2VQAPrediction]) -> Iterator[tuple[str, float]]:
        """Yields the accuracy in percent (arXiv 1505.00468), that of each kind of question, and what the most frequent
        answer to each kind would reach, `chance`."""
        found = [row for p in predictions for row in zip(p.kinds, p.answers, p.said, strict=True)]
        if not found:
            return
        yield "accuracy", mean([vqa_accuracy(answer, said) for _, answer, said in found])
        kinds = sorted({kind for kind, _, _ in found})
        usual = {kind: most_frequent([said for other, _, said in found if other == kind]) for kind in kinds}
        yield "chance", mean([vqa_accuracy(usual[kind], said) for kind, _, said in found])
        for kind in filter(None, kinds):
            of_kind = [(answer, said) for other, answer, said in found if other == kind]
            yield f"accuracy_{name_of(kind)}", mean([vqa_accuracy(answer, said) for answer, said in of_kind])
            yield f"chance_{name_of(kind)}", mean([vqa_accuracy(usual[kind], said) for _, said in of_kind])

    def not_scored(self, predictions: list[Blip2VQAPrediction]) -> dict[str, str]:
        return {} if any(p.answers for p in predictions) else {"accuracy": "no image has a question with answers"}


def most_frequent(said: Sequence[Sequence[str]]) -> str:
    """Returns the most frequent answer of annotators; of several the first in the alphabet."""
    counts = Counter(answer for answers in said for answer in answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def name_of(kind: str) -> str:
    """Returns a kind of question as a part of a metric's name, `yes_no` of `yes/no`."""
    return "".join(c if c.isalnum() else "_" for c in kind)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
