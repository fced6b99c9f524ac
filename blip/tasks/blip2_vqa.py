"""Questions that a frozen language model answers about an image: by a prompt alone, or fine-tuned (BLIP-2, sections 4.1
and 4.3)."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

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
from blip.models.language.source import load_language_model
from blip.models.weights.load import Allowed
from blip.objectives.language_modeling import spoken_targets, token_losses
from blip.shards.sample import BadSample, Sample
from blip.tasks.blip2_stage2 import FIRST_STAGE, QFORMER_TEXT
from blip.tasks.task import EvaluableTask, Prediction, ReadImage, TaskSettings
from blip.tasks.text import TextLengths

QUESTIONS = "questions"
"""The key of a sample's json with several questions about its image."""
PROMPT, SHORT_PROMPT = "Question: {} Answer:", "Question: {} Short answer:"
ALL_TOKENS = 1_000_000
"""Tokens of a text that is measured, not cut."""


class Blip2VQAConfig(TaskSettings):
    MODEL: ClassVar = Blip2Config
    TRAINING: ClassVar = frozenset({"text"})
    TOWERS: ClassVar = ("visual_encoder", "qformer")
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

    def build_task(self, model: nn.Module, tokenizer: Tokenizer) -> "Blip2VQA":
        assert isinstance(model, Blip2)
        return Blip2VQA(self, model, tokenizer)

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
        [prompt] = language.read([self.prompt.format("?")], ALL_TOKENS)
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

    def collate(self, examples: list[Example]) -> Batch:
        """Returns a batch with all questions about its images; in evaluation an image may have none."""
        asked = [(row, question) for row, example in enumerate(examples) for question in questions_or_none(example)]
        owner = torch.tensor([row for row, _ in asked], dtype=torch.long)
        questions = [clean_question(q["question"], self.cfg.question.words) for _, q in asked]
        said = [q["answers"] for _, q in asked]
        kinds = [str(q.get("kind", "")) for _, q in asked]
        weights = [float(q.get("weight", 1.0)) for _, q in asked]
        return Batch.of(examples, None, asked=Asked(questions, said, kinds, owner, weights))

    def soft_prompts(self, batch: Batch, asked: Asked) -> Tensor:
        """Returns soft prompts `(A, Q, D)`, one row for each question."""
        image_tokens = self.model.encode_image(batch.images)
        if not self.cfg.ask_qformer:
            return self.model.soft_prompts(image_tokens)[asked.owner]
        return self.model.soft_prompts(image_tokens[asked.owner], self.read(asked.questions).to(batch.images.device))

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
        logits = language.logits(self.soft_prompts(batch, asked)[rows], spoken)
        losses = token_losses(logits, spoken_targets(spoken.said.ids, spoken.said.mask, spoken.skip), 0.0).sum(1)
        return {"vqa": (torch.tensor(weights, device=losses.device) * losses).sum() / len(asked.questions)}

    @torch.no_grad()
    def converse(self, images: Tensor, questions: Sequence[Sequence[str]]) -> list[list[str]]:
        """Returns the answers to questions about each of uint8 images `(B, 3, H, W)`, asked one after the other.

        The model reads the questions before with its own answers, as in the paper's dialogues (BLIP-2, figure 4).
        Raises ConfigError if a dialogue is longer than `text.tokens`.
        """
        language = self.model.language_model
        soft = self.model.soft_prompts(self.model.encode_image(images))
        said: list[list[str]] = [[] for _ in questions]
        for number in range(max(map(len, questions), default=0)):
            rows = [row for row, asked in enumerate(questions) if number < len(asked)]
            prompts = [self.dialogue(questions[row][: number + 1], said[row]) for row in rows]
            longest = max(map(len, language.read(prompts, ALL_TOKENS)))
            if longest > self.cfg.text.tokens:
                raise ConfigError(
                    f"a dialogue of {number + 1} questions takes {longest} tokens, task.text.tokens is "
                    f"{self.cfg.text.tokens}: raise it, or ask fewer questions"
                )
            answers = language.decode(self.generate(soft[rows], prompts, self.cfg.decoding).ids)
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

    def answer(self, batch: Batch, asked: Asked) -> list[str]:
        """Returns the answers to the questions about a batch's images."""
        prompts = [self.prompt.format(question) for question in asked.questions]
        written = self.generate(self.soft_prompts(batch, asked), prompts, self.cfg.decoding)
        return self.model.language_model.decode(written.ids)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Blip2VQAPrediction]:
        asked: Asked = batch.extra["asked"]
        answers = self.answer(batch, asked) if asked.questions else []
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
        yield "accuracy", mean([vqa_accuracy(answer, said) for _, answer, said in found])
        kinds = sorted({kind for kind, _, _ in found})
        usual = {kind: most_frequent([said for other, _, said in found if other == kind]) for kind in kinds}
        yield "chance", mean([vqa_accuracy(usual[kind], said) for kind, _, said in found])
        for kind in filter(None, kinds):
            of_kind = [(answer, said) for other, answer, said in found if other == kind]
            yield f"accuracy_{name_of(kind)}", mean([vqa_accuracy(answer, said) for answer, said in of_kind])
            yield f"chance_{name_of(kind)}", mean([vqa_accuracy(usual[kind], said) for _, said in of_kind])


def questions_of(texts: Sequence[str], meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a sample's questions with their answers: those that its json lists, or else its own text.

    Raises BadSample if there are none, or if one is invalid.
    """
    listed = meta.get(QUESTIONS)
    asked = listed if isinstance(listed, list) else [{**meta, "question": texts[0] if texts else None}]
    for question in asked:
        if not isinstance(question, dict) or not isinstance(question.get("question"), str):
            raise BadSample("no question")
        answers = question.get("answers")
        if not isinstance(answers, list) or not answers:
            raise BadSample("no answers")
        if not all(isinstance(answer, str) and answer.strip() for answer in answers):
            raise BadSample("an answer that is no text")
    if not asked:
        raise BadSample("no question")
    return asked


def questions_or_none(example: Example) -> list[dict[str, Any]]:
    try:
        return questions_of(example.texts, example.meta)
    except BadSample:
        return []


def most_frequent(said: Sequence[Sequence[str]]) -> str:
    """Returns the most frequent answer of annotators; of several the first in the alphabet."""
    counts = Counter(answer for answers in said for answer in answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def name_of(kind: str) -> str:
    """Returns a kind of question as a part of a metric's name, `yes_no` of `yes/no`."""
    return "".join(c if c.isalnum() else "_" for c in kind)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
