"""The second stage of BLIP-2: a frozen language model says what the Q-Former found (BLIP-2, section 3.3)."""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from blip.batch import Batch, Example
from blip.config import ConfigError
from blip.data.tokenizer import Tokenizer, clean_caption
from blip.models.blip2 import Blip2, Blip2Config
from blip.models.generation import Beam, Decoding, Texts
from blip.models.image_encoder import load_image_encoder
from blip.models.language.language_model import WHOLE_TEXT, Spoken
from blip.models.language.source import load_language_model
from blip.models.weights.load import Allowed
from blip.objectives.language_modeling import caption_loss, spoken_targets
from blip.shards.sample import Sample
from blip.tasks.captioning import (
    CAPTIONED,
    CaptionPrediction,
    caption_scores_of,
    check_captioned,
    to_be_captioned,
    unknown_captions,
)
from blip.tasks.task import EvaluableTask, ReadImage, TaskSettings
from blip.tasks.text import Reduction, TextLengths, shared_mean

QFORMER_TEXT = ("qformer.embeddings.word.*", "qformer.embeddings.position.*", "qformer.layers.*.feed_forward.*")
"""What the Q-Former needs to read texts."""
FIRST_STAGE = ("lm_head.*", "vision_proj.*", "text_proj.*", "itm_head.*", "temp", *QFORMER_TEXT)
"""Parts of the first stage that the second does not have."""


class Blip2Stage2Config(TaskSettings):
    MODEL: ClassVar = Blip2Config
    TRAINING: ClassVar = frozenset({"lm_reduction", "features"})
    TOWERS: ClassVar = ("visual_encoder", "qformer")
    SCORED_BY: ClassVar = CAPTIONED
    DIFFERENCES: ClassVar = Allowed(unused=(*FIRST_STAGE, "Qformer.*"), missing=("visual_encoder.*", "projection.*"))
    type: Literal["blip2_stage2"] = "blip2_stage2"
    prompt: str = ""
    """Text before every caption, excluded from the loss; empty for none."""
    text: TextLengths = TextLengths(words=50, tokens=32, pad="longest")
    """Lengths of a caption with its prompt, in the language model's tokens."""
    lm_reduction: Reduction = "global"
    """Mean of the LM loss: over all tokens of an optimizer step, or, as in the reference, over each process's batch."""
    decoding: Decoding = Beam(beams=5, min_length=8, max_length=30)
    """Decoding method in evaluation; lengths are of new tokens."""
    features: bool = False
    """The data hold the image encoder's features instead of images, so that it is not loaded."""

    def build_model(self, model: Blip2Config) -> Blip2:
        if model.language_model is None:
            raise ConfigError(
                f"model.language_model has no value, but {self.type} needs one: set model.language_model.source"
            )
        encoder = None if self.features else load_image_encoder(model.vision)
        return Blip2(model, encoder, load_language_model(model.language_model))

    def build_task(self, model: nn.Module, tokenizer: Tokenizer) -> "Blip2Stage2":
        assert isinstance(model, Blip2)
        return Blip2Stage2(self, model, tokenizer)

    def check_scored(self, sample: Sample) -> None:
        check_captioned(sample)

    def text_tokens(self) -> dict[str, int]:
        return {}  # of the language model's tokens; the task checks them by its positions


class Blip2Stage2(EvaluableTask[Blip2, CaptionPrediction]):
    """Trains a Q-Former and a projection so that a frozen language model says an image's text.

    A causal model says the whole text; of an encoder-decoder model the encoder is given its first words, of a random
    number, and the decoder says the rest.
    """

    prediction = CaptionPrediction

    def __init__(self, cfg: Blip2Stage2Config, model: Blip2, tokenizer: Tokenizer):
        super().__init__()
        self.cfg = cfg
        self.model = model
        self.tokenizer = tokenizer
        self.tokens: Tensor | None = None
        self.check(cfg.decoding)

    def check(self, decoding: Decoding) -> None:
        """Raises ConfigError if prompt and caption exceed `text.tokens` or what the language model can read."""
        language, queries = self.model.language_model, self.model.cfg.queries
        [prompt] = language.read([self.cfg.prompt], WHOLE_TEXT)
        if len(prompt) + 2 > self.cfg.text.tokens:
            raise ConfigError(
                f"task.text.tokens is {self.cfg.text.tokens}, but the prompt takes {len(prompt)} of them, and a word "
                f"and the end need two: set it to {len(prompt) + 2} or more, or shorten task.prompt"
            )
        language.check_room("task.text.tokens", queries, self.cfg.text.tokens)
        generated = decoding.max_length
        if language.encoder_decoder:
            language.check_room("task.decoding.max_length", 0, generated)
        else:
            language.check_room("task.decoding.max_length with the prompt", queries, len(prompt) + generated)

    def look_ahead(self, micro_batches: Sequence[Batch]) -> None:
        counts = [int((targets_of(batch.extra["spoken"]) >= 0).sum()) for batch in micro_batches]
        self.tokens = shared_mean(counts, self.cfg.lm_reduction)

    def after_step(self) -> None:
        self.tokens = None

    def undo_step(self) -> list[nn.Parameter]:
        self.tokens = None
        return []

    def prepare(self, sample: Sample, view: ReadImage, rng: np.random.Generator) -> Example:
        """Returns an example with two texts: what the language model is given, and what it is to say.

        Of an encoder-decoder model they are the beginning and the rest of the text, neither of them empty unless the
        text is one word.
        """
        example = super().prepare(sample, view, rng)
        words = clean_caption(example.texts[0], self.cfg.text.words).split(" ")
        cut = 0
        if self.model.language_model.encoder_decoder and not self.cfg.prompt and len(words) > 1:
            cut = int(rng.integers(1, len(words)))
        example.texts = [" ".join(words[:cut]) or self.cfg.prompt, " ".join(words[cut:])]
        return example

    def whole(self, sample: Sample, view: ReadImage) -> Example:
        return to_be_captioned(sample, view)

    def collate(self, examples: list[Example]) -> Batch:
        """Returns a batch of pairs from `prepare`; in evaluation the texts are references."""
        given, said = zip(*((e.texts[0], e.texts[-1]) if e.texts else ("", "") for e in examples), strict=True)
        spoken = self.model.language_model.speak(given, said, self.cfg.text.tokens)
        columns = {"references": [e.texts for e in examples], "meta": [e.meta for e in examples]}
        return Batch.of(examples, spoken.said, spoken=spoken, **columns)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        spoken: Spoken = batch.extra["spoken"]
        soft = self.model.soft_prompts(self.model.encode_image(batch.images))
        logits = self.model.language_model.logits(soft, spoken)
        return {"lm": caption_loss(logits, targets_of(spoken), 0.0, self.tokens)}

    @torch.no_grad()
    def generate(
        self, images: Tensor, decoding: Decoding, uniforms: Tensor | None = None, prompts: Sequence[str] | None = None
    ) -> Texts:
        """Generates texts of uint8 images `(B, 3, H, W)` after the task's prompt, or after a prompt each.

        Nucleus sampling takes its draws `(B, max_length)` from `uniforms`, or from torch's generator if None.
        """
        soft = self.model.soft_prompts(self.model.encode_image(images))
        given = prompts or [self.cfg.prompt] * len(images)
        return self.model.language_model.generate(soft, given, decoding, uniforms, self.cfg.text.tokens)

    @torch.no_grad()
    def instruct(self, images: Tensor, prompts: Sequence[str], decoding: Decoding) -> list[str]:
        """Returns what the language model says after a prompt for each of uint8 images `(B, 3, H, W)`.

        Raises ConfigError if prompt and answer are more than the language model can read.
        """
        language, queries = self.model.language_model, self.model.cfg.queries
        longest = max(map(len, language.read(prompts, WHOLE_TEXT)), default=0)
        if language.encoder_decoder:
            language.check_room("the prompt", queries, longest)
        else:
            language.check_room("the prompt with decoding.max_length", queries, longest + decoding.max_length)
        soft = self.model.soft_prompts(self.model.encode_image(images))
        return language.decode(language.generate(soft, prompts, decoding, tokens=WHOLE_TEXT).ids)

    def predict(self, batch: Batch) -> list[CaptionPrediction]:
        captions = self.model.language_model.decode(self.generate(batch.images, self.cfg.decoding).ids)
        columns = (batch.keys, batch.ids, captions, batch.extra["references"], batch.extra["meta"])
        return [CaptionPrediction(*row) for row in zip(*columns, strict=True)]

    def score(self, predictions: list[CaptionPrediction]) -> Iterator[tuple[str, float]]:
        """Yields BLEU, ROUGE-L and CIDEr, times 100."""
        yield from caption_scores_of(predictions)

    def not_scored(self, predictions: list[CaptionPrediction]) -> dict[str, str]:
        return unknown_captions(predictions)


def targets_of(spoken: Spoken) -> Tensor:
    """Returns the tokens that the loss counts `(B, L)`, IGNORED for padding and what is given."""
    return spoken_targets(spoken.said.ids, spoken.said.mask, spoken.skip)
