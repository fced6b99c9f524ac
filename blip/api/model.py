"""A trained model that captions images, matches images with texts, and answers questions."""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from blip.api.arguments import check_decoding, list_images, list_texts, pair_up
from blip.batch import Tokens
from blip.data.image_like import ImageLike, open_image
from blip.data.tokenizer import clean_question
from blip.data.transforms import eval_transform, normalise
from blip.models.generation import Decoding
from blip.tasks.blip2_stage2 import Blip2Stage2
from blip.tasks.blip2_vqa import Blip2VQA
from blip.tasks.captioning import Captioning
from blip.tasks.retrieval import Retrieval
from blip.tasks.task import Task
from blip.tasks.vqa import VQA
from blip.zoo.image_model import Precision
from blip.zoo.ours import OurCaptioner, OurFilter

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
SomeTask = TypeVar("SomeTask", bound=Task)

ABILITIES: dict[type[Task], tuple[str, ...]] = {
    Captioning: ("caption",),
    Retrieval: ("match", "embed", "embed_images", "embed_texts"),
    VQA: ("answer",),
    Blip2Stage2: ("caption", "instruct"),
    Blip2VQA: ("answer", "converse"),
}
"""The methods of a model that each task supports."""

TRAINED_FOR = {
    Captioning: "captioning or pretraining",
    Retrieval: "retrieval or pretraining",
    VQA: "vqa",
    Blip2Stage2: "blip2_stage2",
    Blip2VQA: "blip2_stage2 or blip2_vqa",
}
"""The training tasks whose models can perform each task."""


class UnsupportedError(ValueError):
    """The model was not trained for the method; the message names its methods."""


class Match(NamedTuple):
    """The match of a text and an image (BLIP, section 3.3)."""

    probability: float
    """The probability by image-text matching (ITM), 0 to 1."""
    similarity: float
    """Cosine similarity of the two embeddings (ITC), -1 to 1."""


class Embeddings(NamedTuple):
    """Unit vectors, float32, on the CPU; dot products of images and texts are similarities."""

    images: Tensor
    """`(N, E)`; empty if no images were given."""
    texts: Tensor
    """`(M, E)`; empty if no texts were given."""


def inference(method: Callable[Concatenate["Model", P], R]) -> Callable[Concatenate["Model", P], R]:
    """Lets a method compute without gradients, in the model's precision."""

    @wraps(method)
    def wrapped(self: "Model", *arguments: P.args, **options: P.kwargs) -> R:
        half = self.dtype == "bfloat16"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            return method(self, *arguments, **options)

    return wrapped


class Model:
    """A trained model. Its methods take one value or a sequence of values, and return one result for each.

    Images are files, bytes or Pillow images of any size and mode; they are decoded and scaled as in training.
    Every method raises UnsupportedError if the model was not trained for it, and ValueError for an image that cannot be
    decoded.
    """

    def __init__(
        self,
        folder: Path,
        trained_for: str,
        tasks: Sequence[Task],
        image_size: int,
        batch_size: int,
        dtype: Precision = "float32",
    ):
        self.folder = folder
        self.trained_for = trained_for
        self.image_size = image_size
        """Height and width of the model's input, in pixels."""
        self.batch_size = batch_size
        self.dtype: Precision = dtype
        self.tasks = {type(task): task for task in tasks}

    @property
    def abilities(self) -> tuple[str, ...]:
        """The methods that this model supports."""
        return tuple(name for task in self.tasks for name in ABILITIES[task])

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""
        task = next(iter(self.tasks.values()))
        return next(task.model.parameters()).device

    @inference
    def caption(self, images: ImageLike | Sequence[ImageLike], *, decoding: Decoding | None = None) -> list[str]:
        """Returns a caption for each image.

        `decoding` is `blip.Beam(...)` for the likeliest caption, or `blip.Nucleus(...)` for a random one, drawn from
        torch's global generator; the default is the decoding in the model's configuration.
        """
        captions: list[str] = []
        if isinstance(reader := self.tasks.get(Blip2Stage2), Blip2Stage2):
            some_images = list_images(images)
            return self.instruct(some_images, [reader.cfg.prompt] * len(some_images), decoding=decoding)
        captioner = self.task(Captioning, "caption")
        check_decoding(decoding)
        if decoding:
            captioner.check(decoding)
        for part in self.batches(list_images(images)):
            texts = captioner.generate(self.pixels(part), decoding or captioner.cfg.decoding)
            captions += captioner.tokenizer.decode(texts.ids)
        return captions

    @inference
    def instruct(
        self,
        images: ImageLike | Sequence[ImageLike],
        prompts: str | Sequence[str],
        *,
        decoding: Decoding | None = None,
    ) -> list[str]:
        """Returns what a language model says after each prompt, having seen the image at its position (BLIP-2).

        A single image serves every prompt, and a single prompt every image, as in `instruct("a.jpg", "a photo of")`.
        Raises ValueError if the numbers differ otherwise, ConfigError for a prompt longer than the model can read.
        """
        reader = self.task(Blip2Stage2, "instruct")
        said: list[str] = []
        for part in self.batches(pair_up(list_images(images), list_texts(prompts), "prompts")):
            pixels, given = self.pixels([image for image, _ in part]), [prompt for _, prompt in part]
            said += reader.instruct(pixels, given, decoding or reader.cfg.decoding)
        return said

    @inference
    def converse(self, image: ImageLike, questions: Sequence[str]) -> list[str]:
        """Returns the answers to questions about one image, asked one after the other (BLIP-2, figure 4).

        With each question the language model reads those before and its own answers. Raises ConfigError if they are
        longer than it can read.
        """
        return self.task(Blip2VQA, "converse").converse(self.pixels([image]), [list_texts(questions)])[0]

    @inference
    def match(self, images: ImageLike | Sequence[ImageLike], texts: str | Sequence[str]) -> list[Match]:
        """Returns the match of each text with the image at its position.

        A single image is compared with every text, and a single text with every image. Raises ValueError if the
        numbers of images and texts differ otherwise.
        """
        matcher = self.task(Retrieval, "match")
        some_images, some_texts = list_images(images), list_texts(texts)
        if len(some_images) == 1:
            return self.match_image(matcher, some_images[0], some_texts)
        pairs = pair_up(some_images, some_texts, "texts")
        matches: list[Match] = []
        for part in self.batches(pairs):
            pixels = self.pixels([image for image, _ in part])
            probability, similarity = matcher.match(pixels, [text for _, text in part])
            matches += map(Match, probability.tolist(), similarity.tolist())
        return matches

    def match_image(self, matcher: Retrieval, image: ImageLike, texts: list[str]) -> list[Match]:
        """Returns the matches of one image, which is encoded once, with several texts."""
        model = matcher.model
        tokens = model.encode_image(normalise(self.pixels([image])))
        cross = model.text_encoder.cross_keys_values(tokens)
        matches: list[Match] = []
        for part in self.batches(texts):
            size = len(part)
            repeated = [(keys.expand(size, -1, -1, -1), values.expand(size, -1, -1, -1)) for keys, values in cross]
            probability, similarity = matcher.match_tokens(tokens.expand(size, -1, -1), repeated, part)
            matches += map(Match, probability.tolist(), similarity.tolist())
        return matches

    def embed(self, images: ImageLike | Sequence[ImageLike] = (), texts: str | Sequence[str] = ()) -> Embeddings:
        """Returns the embeddings of images and of texts."""
        return Embeddings(self.embed_images(images), self.embed_texts(texts))

    def as_captioner(self, decoding: Decoding, seed: int = 42) -> OurCaptioner:
        """Returns this model as CapFilt's captioner. Raises UnsupportedError."""
        return OurCaptioner(self.task(Captioning, "caption"), decoding, seed, self.dtype)

    def as_filter(self) -> OurFilter:
        """Returns this model as CapFilt's filter. Raises UnsupportedError."""
        return OurFilter(self.task(Retrieval, "match"), self.dtype)

    @inference
    def embed_images(self, images: ImageLike | Sequence[ImageLike]) -> Tensor:
        """Returns unit vectors `(N, E)`, float32, on the CPU; dot products with those of texts are similarities."""
        matcher = self.task(Retrieval, "embed_images")
        model = matcher.model
        features = [torch.empty(0, model.cfg.embed)]
        for part in self.batches(list_images(images)):
            tokens = model.encode_image(normalise(self.pixels(part)))
            features.append(model.image_feature(tokens).float().cpu())
        return torch.cat(features)

    @inference
    def embed_texts(self, texts: str | Sequence[str]) -> Tensor:
        """Returns unit vectors `(N, E)`, float32, on the CPU."""
        matcher = self.task(Retrieval, "embed_texts")
        model = matcher.model
        features = [torch.empty(0, model.cfg.embed)]
        for part in self.batches(list_texts(texts)):
            hidden = model.encode_text(matcher.encode_texts(part).to(self.device))
            features.append(model.text_feature(hidden).float().cpu())
        return torch.cat(features)

    @inference
    def answer(
        self,
        images: ImageLike | Sequence[ImageLike],
        questions: str | Sequence[str],
        answers: Sequence[str] | None = None,
    ) -> list[str]:
        """Returns the answer to each question about the image at its position.

        A single image serves every question, and a single question every image. Answers are generated, or the likeliest
        of `answers` is chosen. Raises ValueError if the numbers of images and questions differ otherwise, or if
        `answers` is empty.
        """
        if isinstance(reader := self.tasks.get(Blip2VQA), Blip2VQA):
            return self.answer_by_prompt(
                reader, pair_up(list_images(images), list_texts(questions), "questions"), answers
            )
        answerer = self.task(VQA, "answer")
        choices = None if answers is None else list_texts(answers)
        if choices is not None and not choices:
            raise ValueError("answers is empty; give the answers to choose from, or None to let the model write")
        encoded = None if choices is None else answerer.encode_answers(choices).to(self.device)
        found: list[str] = []
        for part in self.batches(pair_up(list_images(images), list_texts(questions), "questions")):
            pixels = self.pixels([image for image, _ in part])
            text = self.encode_questions(answerer, [question for _, question in part])
            if choices is None or encoded is None:
                found += answerer.generate(pixels, text)
            else:
                best = answerer.rank(pixels, text, encoded)
                found += [choices[number] for number in best.tolist()]
        return found

    def answer_by_prompt(
        self, reader: Blip2VQA, pairs: list[tuple[ImageLike, str]], answers: Sequence[str] | None
    ) -> list[str]:
        """Returns the answers that a language model writes. Raises UnsupportedError for answers to choose from."""
        if answers is not None:
            raise UnsupportedError(
                f"model {str(self.folder)!r} was trained for {self.trained_for}, whose language model writes its "
                "answers; leave out answers, or load a model of vqa"
            )
        found: list[str] = []
        for part in self.batches(pairs):
            asked = [clean_question(question, reader.cfg.question.words) for _, question in part]
            owner = torch.arange(len(part), device=self.device)
            found += reader.answer(self.pixels([image for image, _ in part]), asked, owner)
        return found

    def encode_questions(self, answerer: VQA, questions: list[str]) -> Tokens:
        lengths = answerer.cfg.question
        cleaned = [clean_question(question, lengths.words) for question in questions]
        return answerer.tokenizer.encode(cleaned, lengths.tokens, lengths.pad).to(self.device)

    def task(self, kind: type[SomeTask], method: str) -> SomeTask:
        """Returns the task of this class. Raises UnsupportedError if the model was not trained for it."""
        task = self.tasks.get(kind)
        if task is None:
            can = f"was trained for {self.trained_for} and can do: {', '.join(self.abilities)}"
            raise UnsupportedError(f"model {str(self.folder)!r} {can}; {method} needs a model of {TRAINED_FOR[kind]}")
        assert isinstance(task, kind)
        return task

    def batches(self, values: list[T]) -> Iterator[list[T]]:
        for start in range(0, len(values), self.batch_size):
            yield values[start : start + self.batch_size]

    def pixels(self, images: Sequence[ImageLike]) -> Tensor:
        """Returns uint8 images `(B, 3, H, W)` on the model's device. Raises as `open_image`."""
        transform = eval_transform(self.image_size)
        scaled = [transform(open_image(image)) for image in images]
        return torch.stack(scaled).to(self.device)
