"""BLIP-2: a Q-Former between a frozen image encoder and, in its second stage, a frozen language model."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blip.batch import Tokens
from blip.config import Config
from blip.models import image_encoder
from blip.models.bert import KeysValues, KVCache, LMHead, TextConfig, initialise
from blip.models.frozen import Frozen
from blip.models.image_encoder import ImageEncoder, ImageEncoderConfig
from blip.models.language import source
from blip.models.language.config import LanguageModelConfig
from blip.models.language.language_model import LanguageModel
from blip.models.med import SpecialTokens, replace_first
from blip.models.qformer import QFormer


class Blip2Config(Config):
    type: Literal["blip2"] = "blip2"
    vision: ImageEncoderConfig = ImageEncoderConfig()
    text: TextConfig = TextConfig(vocab_size=30523)
    """The Q-Former's transformer; its vocabulary ends with [DEC]."""
    queries: int = Field(default=32, ge=1, le=4096)
    """Number of learned queries."""
    cross_every: int = Field(default=2, ge=1, le=1000)
    """Every so many layers, from the first on, the queries attend to the image."""
    embed: int = Field(default=256, ge=1, le=65536)
    """Width of the embeddings by which images and texts are compared."""
    tokens: SpecialTokens = SpecialTokens()
    language_model: LanguageModelConfig | None = None
    """The frozen language model of the second stage."""
    projection_std: float = Field(default=0.02, gt=0, le=10)
    """Standard deviation of the initial projection to the language model; soft prompts learn soonest if they begin at
    the scale of its word embeddings, which is this times the root of `text.width`."""

    def located(self, folder: Path) -> Self:
        """Returns the configuration with sources that begin with `./` found in a folder, that of the model."""
        return self.with_sources(lambda name: str(folder / name) if name.startswith("./") else name)

    def relative_to(self, folder: Path) -> Self:
        """Returns the configuration with sources in a folder, that of the model, as `./...`, so that it can move."""
        home = f"{folder.resolve()}/"
        return self.with_sources(lambda name: f"./{name.removeprefix(home)}" if name.startswith(home) else name)

    def with_sources(self, change: Callable[[str], str]) -> Self:
        parts = {"vision": self.vision, "language_model": self.language_model}
        changed = {
            name: part.model_copy(update={"source": change(part.source)}) for name, part in parts.items() if part
        }
        return self.model_copy(update=changed)

    def with_digests(self) -> Self:
        """Returns the configuration with the digests of its frozen models.

        Raises ConfigError or WeightsError if one is missing, does not fit, or is not the one of a digest that is given.
        """
        found: dict[str, Config] = {"vision": image_encoder.with_digest(self.vision)}
        if self.language_model is not None:
            found["language_model"] = source.with_digest(self.language_model)
        return self.model_copy(update=found)


class QueriedImages(nn.Module):
    """An image encoder, frozen unless the configuration trains it, the LayerNorm over its tokens, and the Q-Former.

    Without an encoder, images are features that a cache holds.
    """

    def __init__(self, cfg: Blip2Config, encoder: ImageEncoder | None, text: bool):
        super().__init__()
        self.cfg = cfg
        if encoder is not None:
            self.visual_encoder = encoder if cfg.vision.trained else Frozen(encoder)
        self.ln_vision = nn.LayerNorm(cfg.vision.width, eps=cfg.vision.norm_eps)
        self.qformer = QFormer(cfg.text, cfg.queries, cfg.cross_every, cfg.vision.width, cfg.tokens.pad, text)

    def encode_image(self, images: Tensor) -> Tensor:
        """Maps uint8 images `(B, 3, H, W)`, or features `(B, N, W)` of a cache, to tokens `(B, N, W)`."""
        features = images if images.dim() == 3 else self.image_features(images)
        return self.ln_vision(features.float())

    def image_features(self, images: Tensor) -> Tensor:
        """Maps uint8 images `(B, 3, H, W)` to the image encoder's tokens `(B, N, W)`."""
        with nullcontext() if self.cfg.vision.trained else torch.no_grad():
            return self.visual_encoder(images)


class QFormerModel(QueriedImages):
    """The model of the first stage: a Q-Former that compares, matches and describes (BLIP-2, section 3.2)."""

    def __init__(self, cfg: Blip2Config, encoder: ImageEncoder | None):
        super().__init__(cfg, encoder, text=True)
        self.lm_head = LMHead(cfg.text, self.qformer.embeddings.word)
        self.vision_proj = nn.Linear(cfg.text.width, cfg.embed)
        self.text_proj = nn.Linear(cfg.text.width, cfg.embed)
        self.itm_head = nn.Linear(cfg.text.width, 2)
        for head in (self.vision_proj, self.text_proj, self.itm_head):
            initialise(head, cfg.text.init_std)

    def image_feature(self, hidden: Tensor) -> Tensor:
        """Maps what the queries found `(B, Q, D)` to unit vectors `(B, Q, embed)`."""
        return F.normalize(self.vision_proj(hidden), dim=-1)

    def text_feature(self, hidden: Tensor) -> Tensor:
        """Maps hidden states of texts `(B, L, D)` to unit vectors `(B, embed)`."""
        return F.normalize(self.text_proj(hidden[:, 0]), dim=-1)

    def match(self, text: Tokens, cross: list[KeysValues]) -> Tensor:
        """Returns logits `(B, 2)` of image-text matching, the mean over queries, column 1 for a match.

        `cross` comes from `qformer.cross_keys_values`.
        """
        hidden, _, _ = self.qformer.encode_both(text, cross, "bidirectional")
        return self.itm_head(hidden).mean(1)

    def decode(self, text: Tokens, past: list[KeysValues]) -> Tensor:
        """Returns logits `(B, L, vocabulary)` of each next token; the first token is replaced by [DEC].

        `past` are the queries' self-attention keys and values.
        """
        ids = replace_first(text.ids, self.cfg.tokens.dec)
        return self.lm_head(self.qformer.decode(Tokens(ids, text.mask), past))

    def decode_step(self, ids: Tensor, past: list[KeysValues], cache: KVCache) -> Tensor:
        """Returns logits `(B, vocabulary)` after ids `(B, L)`, which continue the cache and are added to it."""
        return self.lm_head(self.qformer.decode_step(ids, past, cache)[:, -1:])[:, 0]


class Blip2(QueriedImages):
    """The model of the second stage: what the queries find is read by a frozen language model (BLIP-2, section 3.3).

    With `question` the Q-Former reads a text too, as in answering questions (BLIP-2, section 4.3).
    """

    def __init__(
        self, cfg: Blip2Config, encoder: ImageEncoder | None, language: LanguageModel | None, question: bool = False
    ):
        super().__init__(cfg, encoder, text=question)
        assert cfg.language_model is not None
        self.projection = nn.Linear(cfg.text.width, cfg.language_model.width)
        initialise(self.projection, cfg.projection_std)
        if language is not None:
            self.frozen_language_model = Frozen(language)

    @property
    def language_model(self) -> LanguageModel:
        return cast(LanguageModel, self.frozen_language_model.network)

    def soft_prompts(self, image_tokens: Tensor, question: Tokens | None = None) -> Tensor:
        """Maps image tokens `(B, N, W)`, and questions if the Q-Former reads them, to soft prompts `(B, Q, D)`."""
        cross = self.qformer.cross_keys_values(image_tokens)
        if question is None:
            found, _ = self.qformer.encode_image(cross)
        else:
            found, _, _ = self.qformer.encode_both(question, cross, "bidirectional")
        return self.projection(found)


def best_query(image: Tensor, text: Tensor) -> Tensor:
    """Returns similarities `(N, T)` of images `(N, Q, E)` and texts `(T, E)`, each image by its best query."""
    return (image @ text.T).amax(1)
