"""Captioning: generates the text of an image after a prompt; the task of the captioner (BLIP, sections 3.3 and 5.2)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from blip.batch import Batch, Example
from blip.config import ConfigError
from blip.data.tokenizer import Tokenizer, clean_caption
from blip.data.transforms import normalise
from blip.models.generation import Beam, Decoding, Nucleus, Texts, beam_search, check_room, sample
from blip.models.med import MED, MEDConfig
from blip.models.weights.load import HEADS, TRAINING_STATE, Allowed
from blip.objectives.language_modeling import caption_loss, next_token_targets
from blip.shards.sample import Sample
from blip.tasks.task import EvaluableTask, Prediction, ReadImage, TaskSettings, texts_of
from blip.tasks.text import Reduction, TextLengths, shared_count

CAPTIONED = "a caption, or the `image_id` in its json that a server knows it by"
"""What the evaluation of captions looks for in a sample."""


class CaptioningConfig(TaskSettings):
    TRAINING: ClassVar = frozenset({"smoothing", "lm_reduction"})
    SCORING: ClassVar = frozenset({"meteor", "spice", "spice_models"})
    TOWERS: ClassVar = ("visual_encoder", "text_decoder")
    SCORED_BY: ClassVar = CAPTIONED
    DIFFERENCES: ClassVar = Allowed(unused=(*TRAINING_STATE, *HEADS, "text_encoder.*"))
    type: Literal["captioning"] = "captioning"
    prompt: str = "a picture of "
    """Prefix of every caption, excluded from the loss; empty for none."""
    text: TextLengths = TextLengths(words=30, tokens=40, pad="longest")
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing of the LM loss."""
    lm_reduction: Reduction = "global"
    """Mean of the LM loss: over all tokens of an optimizer step, or, as in the reference, over each process's batch."""
    decoding: Decoding = Beam()
    """Decoding method in evaluation."""
    meteor: bool = False
    """Score METEOR too, which takes some seconds and 2 GB."""
    spice: bool = False
    """Score SPICE too, where `spice_models` are there; where they are not, the result says so."""
    spice_models: Path | None = None
    """The folder of Stanford CoreNLP 3.6 and its models, which SPICE needs; none looks beside pycocoevalcap's SPICE."""

    def build_model(self, model: MEDConfig) -> MED:
        return MED(model, encoder=False)

    def build_task(self, model: nn.Module, tokenizer: Tokenizer) -> "Captioning":
        assert isinstance(model, MED)
        return Captioning(self, model, tokenizer)

    def check_scored(self, sample: Sample) -> None:
        check_captioned(sample)

    def text_tokens(self) -> dict[str, int]:
        return {"text.tokens": self.text.tokens}

    def check_generation(self, positions: int) -> None:
        # a lower bound: a prompt has at least as many tokens as words; the task counts tokens with its tokenizer
        check_room(self.decoding, 1 + len(self.prompt.split()), positions)


PROMPT = 1_000_000
"""Maximum number of prompt tokens, large enough never to cut the prompt."""


@dataclass(frozen=True)
class CaptionPrediction(Prediction):
    id: str
    """The sample's id, unique over all shards."""
    caption: str
    references: list[str]
    """The sample's own texts."""
    meta: dict[str, Any]
    """The sample's metadata."""


class Captioning(EvaluableTask[MED, CaptionPrediction]):
    """Trains a model to generate the text of an image."""

    prediction = CaptionPrediction

    def __init__(self, cfg: CaptioningConfig, model: MED, tokenizer: Tokenizer):
        super().__init__()
        self.cfg = cfg
        self.model = model
        self.tokenizer = tokenizer
        self.tokens: Tensor | None = None
        self.check(cfg.decoding)

    def check(self, decoding: Decoding) -> None:
        """Raises ConfigError if prompt and caption exceed `text.tokens` or the model's positions."""
        prompt = len(self.tokenizer.encode([self.cfg.prompt], PROMPT, "longest").ids[0]) - 1
        if prompt + 2 > self.cfg.text.tokens:
            raise ConfigError(
                f"text.tokens is {self.cfg.text.tokens}, but the prompt takes {prompt} of them, and a word and "
                "[SEP] need two: "
                f"set it to {prompt + 2} or more, or shorten prompt"
            )
        check_room(decoding, prompt, self.model.cfg.text.positions)

    def look_ahead(self, micro_batches: Sequence[Batch]) -> None:
        self.tokens = shared_count(micro_batches, self.prompt(1).shape[1], self.cfg.lm_reduction)

    def after_step(self) -> None:
        self.tokens = None

    def collate(self, examples: list[Example]) -> Batch:
        said = [clean_caption(e.texts[0], self.cfg.text.words) if e.texts else "" for e in examples]
        texts = [f"{self.cfg.prompt}{text}" for text in said]
        tokens = self.tokenizer.encode(texts, self.cfg.text.tokens, self.cfg.text.pad)
        return Batch.of(examples, tokens, references=[e.texts for e in examples], meta=[e.meta for e in examples])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        text = batch.text
        assert text is not None
        cross = self.model.text_decoder.cross_keys_values(self.model.encode_image(normalise(batch.images)))
        targets = next_token_targets(text.ids, text.mask, prompt=self.prompt(1).shape[1])
        logits = self.model.decode(text, cross)[:, :-1]
        return {"lm": caption_loss(logits, targets, self.cfg.smoothing, self.tokens)}

    def prompt(self, batch: int) -> Tensor:
        """Returns [DEC] and the prompt's tokens, `(batch, P)`."""
        ids = self.tokenizer.encode([self.cfg.prompt], self.cfg.text.tokens, "longest").ids[:, :-1]
        ids[:, 0] = self.model.cfg.tokens.dec
        return ids.expand(batch, -1)

    @torch.no_grad()
    def generate(self, images: Tensor, decoding: Decoding, uniforms: Tensor | None = None) -> Texts:
        """Generates captions of uint8 images `(B, 3, H, W)`.

        Nucleus sampling takes its draws `(B, max_length)` from `uniforms`, or from torch's generator if None.
        """
        cross = self.model.text_decoder.cross_keys_values(self.model.encode_image(normalise(images)))
        prompt, sep = self.prompt(len(images)).to(images.device), self.model.cfg.tokens.sep
        match decoding:
            case Nucleus():
                draws = (
                    torch.rand(len(images), decoding.max_length, device=images.device) if uniforms is None else uniforms
                )
                return sample(self.model.decode_step, prompt, cross, decoding, draws, sep)
            case Beam():
                return beam_search(self.model.decode_step, prompt, cross, decoding, sep)

    def whole(self, sample: Sample, view: ReadImage) -> Example:
        return to_be_captioned(sample, view)

    def predict(self, batch: Batch) -> list[CaptionPrediction]:
        captions = self.tokenizer.decode(self.generate(batch.images, self.cfg.decoding).ids)
        columns = (batch.keys, batch.ids, captions, batch.extra["references"], batch.extra["meta"])
        return [CaptionPrediction(*row) for row in zip(*columns, strict=True)]

    def score(self, predictions: list[CaptionPrediction]) -> Iterator[tuple[str, float]]:
        """As `caption_scores_of`, with METEOR and SPICE if they are asked for and can be computed."""
        from blip.metrics.captioning import spice_folder  # local import: pycocoevalcap and Java come with an extra

        spice = spice_folder(self.cfg.spice_models) if self.cfg.spice else None
        yield from caption_scores_of(predictions, meteor=self.cfg.meteor, spice=spice)

    def baseline(self, predictions: list[CaptionPrediction]) -> Iterator[tuple[str, float]]:
        """As `score`, of `others_captions`, without METEOR and SPICE."""
        yield from caption_scores_of(others_captions(predictions))

    def not_scored(self, predictions: list[CaptionPrediction]) -> dict[str, str]:
        from blip.metrics.captioning import SPICE_IS_MISSING, spice_folder

        missing = self.cfg.spice and spice_folder(self.cfg.spice_models) is None
        return unknown_captions(predictions) | ({"spice": SPICE_IS_MISSING} if missing else {})

    def submission(self, predictions: list[CaptionPrediction]) -> dict[str, Any]:
        """Returns the results that the servers of COCO and NoCaps take, if the images have ids of theirs."""
        if not all("image_id" in p.meta for p in predictions):
            return {}
        results = [{"image_id": p.meta["image_id"], "caption": p.caption} for p in predictions]
        return {"captions_results.json": results}


def to_be_captioned(sample: Sample, view: ReadImage) -> Example:
    """Returns the example of an image whose captions may be unknown, as those of a server's test split are."""
    texts = [text for text in sample.texts if text.strip()]
    return Example(sample.key, view(sample.images[0]), texts, sample.meta, sample.id)


def check_captioned(sample: Sample) -> None:
    """Raises BadSample if a sample has neither a caption to score by nor an id to be sent to a server by."""
    if "image_id" not in sample.meta:
        texts_of(sample)


def unknown_captions(predictions: list[CaptionPrediction]) -> dict[str, str]:
    """Returns the reason for which captions have no score, if no captions of people are published."""
    known = any(p.references for p in predictions)
    return {} if known else {"cider": "no image has published captions: no score of captions is known"}


def others_captions(predictions: list[CaptionPrediction]) -> list[CaptionPrediction]:
    """Returns predictions that caption each image as a person captioned the next one, those without references left
    out.
    """
    known = [p for p in predictions if p.references]
    return [replace(p, caption=after.references[0]) for p, after in zip(known, known[1:] + known[:1], strict=True)]


def caption_scores_of(
    predictions: list[CaptionPrediction], meteor: bool = False, spice: Path | None = None
) -> Iterator[tuple[str, float]]:
    """Yields BLEU, ROUGE-L and CIDEr, times 100, and METEOR and SPICE if they are asked for.

    Of a data set with domains, such as NoCaps, it yields CIDEr and SPICE of each domain too, over its own images.
    Nothing is yielded if no captions of people are published.
    """
    from blip.metrics.captioning import caption_scores  # local import: pycocoevalcap and Java come with an extra

    # keys may repeat, and every prediction counts
    known = {str(number): p for number, p in enumerate(predictions) if p.references}
    domains = {str(p.meta["domain"]): dict[str, CaptionPrediction]() for p in known.values() if "domain" in p.meta}
    for number, p in known.items():
        if "domain" in p.meta:
            domains[str(p.meta["domain"])][number] = p

    def scored(some: dict[str, CaptionPrediction], meteor: bool) -> dict[str, float]:
        captions = {number: p.caption for number, p in some.items()}
        references = {number: p.references for number, p in some.items()}
        return caption_scores(captions, references, meteor=meteor, spice=spice)

    if known:
        yield from scored(known, meteor).items()
    for domain, some in sorted(domains.items()):
        own = scored(some, meteor=False)
        for name in ("cider", "spice"):
            if name in own:
                yield f"{name}_{domain.partition('-')[0]}", own[name]
