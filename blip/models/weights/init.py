"""Where a model starts: from ImageNet and BERT as in the paper, or from a checkpoint (BLIP, section 4.1)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from blip.config import Config
from blip.models.weights.files import WeightsError, read_tensors
from blip.models.weights.load import NOTHING, Allowed, LoadReport, fill, load_weights, recognise, shape_change
from blip.models.weights.names import bert, timm
from blip.models.weights.source import fetched


class InitConfig(Config):
    """Each source is a path, a store's URI, or a hub name; what is not given starts at random."""

    vision: str | None = None
    """A timm vision transformer, for example `deit_base_patch16_224.fb_in1k`, which the hub has under `timm/`."""
    text: str | None = None
    """A BERT, for example `google-bert/bert-base-uncased`."""
    checkpoint: str | None = None
    """A whole model: ours, the reference's `.pth`, or a folder of transformers. It comes last and so has the last
    word.
    """
    allow_unused: tuple[str, ...] = ()
    """Tensors of a source that may be left, beyond those that the task never needs; patterns such as
    `text_encoder.*`.
    """
    allow_missing: tuple[str, ...] = ()
    """Tensors of the model that may start at random, beyond those that the task adds; patterns in our names."""


IMAGENET = Allowed(
    unused=("head.*", "head_dist.*", "dist_token", "pre_logits.*"),
    missing=("text_*", "lm_head.*", "*_proj.*", "*_head.*"),
)
"""A classifier's head stays behind; texts and heads come from elsewhere."""

BERT = Allowed(
    unused=("bert.embeddings.token_type_embeddings.*", "bert.pooler.*", "cls.seq_relationship.*"),
    missing=("visual_encoder.*", "*.cross_attention.*", "*_proj.*", "*_head.*"),
)
"""BERT's marks of first and second sentence stay behind; what looks at images is new."""

WORDS = (
    "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
    "cls.predictions.bias",
)
"""BERT's tensors that have a row for each word."""

NEW_TOKENS = 2
"""[DEC] and [ENC], which BERT does not know."""


def init_weights(model: nn.Module, cfg: InitConfig, allowed: Allowed = NOTHING) -> list[LoadReport]:
    """Fills a model from the sources of its configuration; `allowed` says how a checkpoint of another task may differ.

    Raises WeightsError if a source is not there or does not fit.
    """
    listed = Allowed(cfg.allow_unused, cfg.allow_missing)
    reports = []
    if cfg.vision:
        source = cfg.vision if "/" in cfg.vision or Path(cfg.vision).exists() else f"timm/{cfg.vision}"
        with fetched(source) as path:
            tensors, spelling = recognise(read_tensors(path), model, (timm,))
            reports.append(fill(model, tensors, spelling, source, IMAGENET | listed))
    if cfg.text:
        with fetched(cfg.text) as path:
            reports.append(init_text(model, read_tensors(path), cfg.text, BERT | listed))
    if cfg.checkpoint:
        reports.append(load_weights(model, cfg.checkpoint, allowed | listed))
    return reports


def init_text(model: nn.Module, tensors: Mapping[str, Tensor], source: str, allowed: Allowed) -> LoadReport:
    """Fills text encoder, decoder and LM head from BERT; the rows of [DEC] and [ENC] keep their initial values."""
    bare, _ = recognise(tensors, model, (bert, lambda name: tuple(key.removeprefix("bert.") for key in bert(name))))
    tensors = {modern_name(name): tensor for name, tensor in bare.items()}
    names = {key: name for name, _ in model.named_parameters(remove_duplicate=False) for key in bert(name)}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    extended = {}
    embedding = WORDS[0]
    if embedding in tensors and embedding in names:
        known, wanted = len(tensors[embedding]), len(parameters[names[embedding]])
        if wanted not in (known, known + NEW_TOKENS):
            raise WeightsError(
                f"init.text {source} has {known} words, the data's tokenizer {wanted - NEW_TOKENS} and two of "
                f"ours: {names[embedding]} "
                f"{tuple(tensors[embedding].shape)} -> {tuple(parameters[names[embedding]].shape)}; "
                f"ingest with tokenizer={source}, or start without its weights by init.text=null"
            )
    for key in WORDS:
        if key in tensors and key in names and len(parameters[names[key]]) == len(tensors[key]) + NEW_TOKENS:
            parameter, known = parameters[names[key]].detach(), tensors[key]
            extended[names[key]] = shape_change(known, parameter)
            tensors[key] = torch.cat([known, parameter[len(known) :].to(known)])
    report = fill(model, tensors, bert, source, allowed)
    return replace(report, resized={**report.resized, **extended})


def modern_name(name: str) -> str:
    """BERT's names as files of today spell them: with `bert.` in front, LayerNorm with weight and bias."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"
