"""Initialises a model: from ImageNet and BERT weights as in the paper, or from a checkpoint (BLIP, section 4.1)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor, nn

from blip.config import Config
from blip.models.weights.content import IMAGE_ENCODER, MODEL
from blip.models.weights.files import WeightsError, read_tensors
from blip.models.weights.load import NOTHING, Allowed, LoadReport, fill, load_weights, recognise_spelling, shape_change
from blip.models.weights.names import bert, timm
from blip.models.weights.source import fetched


class InitConfig(Config):
    """Sources of initial weights, as `fetched` resolves them: a path, a store's URI, or a hub name; parts without a
    source are random."""

    vision: Annotated[str | None, IMAGE_ENCODER] = None
    """A timm vision transformer, for example `deit_base_patch16_224.fb_in1k`, on the hub under `timm/`."""
    text: Annotated[str | None, MODEL] = None
    """A BERT, for example `google-bert/bert-base-uncased`."""
    checkpoint: Annotated[str | None, MODEL] = None
    """A whole model, in our format, the reference's `.pth`, or that of transformers; overrides the other sources."""
    allow_unused: tuple[str, ...] = ()
    """Patterns, such as `text_encoder.*`, of tensors in a source that may be unused, in addition to the task's own."""
    allow_missing: tuple[str, ...] = ()
    """Patterns, in our names, of the model's tensors that may stay random, in addition to the task's own."""


IMAGENET = Allowed(
    unused=("head.*", "head_dist.*", "dist_token", "pre_logits.*"),
    missing=("text_*", "lm_head.*", "*_proj.*", "*_head.*"),
)
"""Allowed differences of a vision transformer: the classifier is unused; texts and heads are missing."""

BERT = Allowed(
    unused=("bert.embeddings.token_type_embeddings.*", "bert.pooler.*", "cls.seq_relationship.*"),
    missing=(
        "visual_encoder.*",
        "ln_vision.*",
        "*.query_tokens",
        "*.cross_attention.*",
        "*_proj.*",
        "*_head.*",
        "projection.*",
    ),
)
"""Allowed differences of a BERT: token type embeddings and pooler are unused, the image parts and heads missing."""

WORDS = (
    "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
    "cls.predictions.bias",
)
"""BERT's tensors with one row per token of the vocabulary."""

NEW_TOKENS = (1, 2)
"""[DEC], and of BLIP [ENC], which BERT's vocabulary lacks."""


def init_weights(model: nn.Module, cfg: InitConfig, allowed: Allowed = NOTHING) -> list[LoadReport]:
    """Initialises a model from its configured sources; `allowed` are a checkpoint's differences for the task.

    Raises WeightsError if a source is missing or does not fit.
    """
    listed = Allowed(cfg.allow_unused, cfg.allow_missing)
    reports = []
    if cfg.vision:
        with fetched(cfg.vision, IMAGE_ENCODER) as path:
            tensors, spelling = recognise_spelling(read_tensors(path), model, (timm,))
            reports.append(fill(model, tensors, spelling, cfg.vision, IMAGENET | listed))
    if cfg.text:
        with fetched(cfg.text) as path:
            reports.append(init_text(model, read_tensors(path), cfg.text, BERT | listed))
    if cfg.checkpoint:
        reports.append(load_weights(model, cfg.checkpoint, allowed | listed))
    return reports


def init_text(model: nn.Module, tensors: Mapping[str, Tensor], source: str, allowed: Allowed) -> LoadReport:
    """Initialises text encoder, text decoder and LM head from BERT; the rows of [DEC] and [ENC] stay random.

    Raises WeightsError if the vocabularies differ otherwise, or the tensors do not fit.
    """
    bare, _ = recognise_spelling(
        tensors, model, (bert, lambda name: tuple(key.removeprefix("bert.") for key in bert(name)))
    )
    tensors = {modern_name(name): tensor for name, tensor in bare.items()}
    names = {key: name for name, _ in model.named_parameters(remove_duplicate=False) for key in bert(name)}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    extended = {}
    embedding = WORDS[0]
    if embedding in tensors and embedding in names:
        known, wanted = len(tensors[embedding]), len(parameters[names[embedding]])
        if wanted - known not in (0, *NEW_TOKENS):
            raise WeightsError(
                f"init.text {source} has {known} words, the data's tokenizer {wanted} with those of ours: "
                f"{names[embedding]} {tuple(tensors[embedding].shape)} -> {tuple(parameters[names[embedding]].shape)}; "
                f"ingest with tokenizer={source}, or start without its weights by init.text=null"
            )
    for key in WORDS:
        if key in tensors and key in names and len(parameters[names[key]]) - len(tensors[key]) in NEW_TOKENS:
            parameter, known = parameters[names[key]].detach(), tensors[key]
            extended[names[key]] = shape_change(known, parameter)
            tensors[key] = torch.cat([known, parameter[len(known) :].to(known)])
    report = fill(model, tensors, bert, source, allowed)
    return replace(report, resized={**report.resized, **extended})


def modern_name(name: str) -> str:
    """Converts old names of BERT's tensors to current ones: prefix `bert.`, LayerNorm with weight and bias."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"
