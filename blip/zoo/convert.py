"""Converts checkpoints of BLIP, of the reference and of transformers, to model folders of ours."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from blip.config import Config, ConfigError, merged, set_value, validate
from blip.data.tokenizer import Tokenizer
from blip.models.med import MEDConfig
from blip.models.weights.content import TOKENIZER as TOKENIZER_FILES
from blip.models.weights.files import read_tensors
from blip.models.weights.load import Allowed, load_weights
from blip.models.weights.source import fetched
from blip.tasks.alignment import AlignmentConfig
from blip.tasks.blip2_exchange import import_transformers
from blip.tasks.captioning import CaptioningConfig
from blip.tasks.model_folder import save_model
from blip.tasks.nlvr import NLVRConfig
from blip.tasks.pretraining import PretrainingConfig
from blip.tasks.retrieval import RetrievalConfig
from blip.tasks.vqa import VQAConfig
from blip.zoo.recognise import CONFIG, ModelKind, official_file, settings_beside
from blip.zoo.sniff import SniffedCheckpoint

BERT, BERT_VOCABULARY = "google-bert/bert-base-uncased", 30524
"""The tokenizer of all released checkpoints, and the size of its vocabulary with [DEC] and [ENC]."""
TOKENIZER_WAY_OUT = (
    "name one by `blip import --tokenizer` (a folder, a vocab.txt, a store's URI or a name on the hub), and then the "
    "folder that this writes"
)
CLASS_TASKS = {
    "BlipForConditionalGeneration": "captioning",
    "BlipForImageTextRetrieval": "retrieval",
    "BlipForQuestionAnswering": "vqa",
}
"""Tasks by classes of transformers."""


class ImportConfig(Config):
    """What a checkpoint is converted to."""

    task: Annotated[
        PretrainingConfig | CaptioningConfig | RetrievalConfig | VQAConfig | NLVRConfig, Field(discriminator="type")
    ]
    model: MEDConfig
    allow_unused: tuple[str, ...] = ()
    allow_missing: tuple[str, ...] = ()
    """Names, or patterns, of tensors of the checkpoint that the model lacks, and of the model that the checkpoint does,
    if that is intended."""


def convert(path: Path, kind: ModelKind, out: Path, tokenizer: str = "", overrides: Sequence[str] = ()) -> None:
    """Writes a checkpoint as a model folder. `overrides` are settings of task and model that its files do not tell.

    Raises ConfigError if they leave a setting unknown, if the tokenizer is nowhere or of another vocabulary, and if the
    checkpoint does not fit.
    """
    if kind in ("blip2_matcher", "blip2_generator"):
        import_transformers(path, out, queries_tokenizer(path, kind, tokenizer))
        return
    file = path if path.is_file() else official_file(path)
    weights = path if kind == "blip" else file
    if weights is None:
        raise ConfigError(f"model {path}: holds several files of weights; name one of them")
    found = transformers_values(path) if kind == "blip" else official_values(weights)
    changes: dict[str, Any] = {}
    for override in overrides:
        set_value(changes, override)
    values = merged(found, changes)
    for part in ("vision", "text"):
        if values["model"][part].get("heads") is None:
            raise ConfigError(
                f"model {path}: the number of attention heads of its {part} part stands in no file; say it by "
                f"`blip import --set model.{part}.heads=N`"
            )
    words = checkpoint_tokenizer(path, tokenizer, values["model"]["text"]["vocab_size"])
    tokens = {"pad": words.pad, "cls": words.cls, "sep": words.sep, "dec": words.dec, "enc": words.enc}
    cfg = validate(ImportConfig, merged(values, {"model": {"tokens": tokens}}), f"model {path}")
    settings = with_short_texts(cfg, changes).task
    settings.check_text_lengths(cfg.model)
    if isinstance(settings, PretrainingConfig | RetrievalConfig):
        settings = settings.model_copy(update={"alignment": AlignmentConfig(queue=1)})  # only training uses the queue
    model = settings.build_model(cfg.model)
    load_weights(model, str(weights), settings.DIFFERENCES | Allowed(cfg.allow_unused, cfg.allow_missing))
    save_model(settings.build_task(model, words), out, training_state=False)


def with_short_texts(cfg: ImportConfig, changes: dict[str, Any]) -> ImportConfig:
    """Returns a configuration whose texts are no longer than the model's positions, unless `changes` say otherwise."""
    positions = cfg.model.text.positions
    shorter: dict[str, Any] = {}
    for name, tokens in cfg.task.text_tokens().items():
        if tokens > positions:
            set_value(shorter, f"{name}={positions}")
    task = merged(merged(cfg.task.model_dump(mode="json"), shorter), changes.get("task", {}))
    return validate(ImportConfig, {"task": task, "model": cfg.model.model_dump(mode="json")}, "model")


def official_values(file: Path) -> dict[str, Any]:
    """Returns the values of an ImportConfig for a checkpoint of the reference."""
    checkpoint = SniffedCheckpoint(read_tensors(file), file)
    return {
        "task": {"type": checkpoint.task},
        "model": checkpoint.sizes(settings_beside(file, "med_config.json")),
    }


def transformers_values(folder: Path) -> dict[str, Any]:
    """Returns the values of an ImportConfig for a BLIP of transformers."""
    from transformers import BlipConfig  # takes a second, and knows the defaults that a folder leaves out

    classes = settings_beside(folder, CONFIG).get("architectures") or ["none"]
    if classes[0] not in CLASS_TASKS:
        raise ConfigError(f"model {folder}: its class is {classes[0]}; known are {', '.join(CLASS_TASKS)}")
    cfg = BlipConfig.from_pretrained(folder, local_files_only=True)
    text: Any = cfg.text_config
    vision: Any = cfg.vision_config
    values = {
        "vision": {
            "size": vision.image_size,
            "patch": vision.patch_size,
            "width": vision.hidden_size,
            "depth": vision.num_hidden_layers,
            "heads": vision.num_attention_heads,
        },
        "text": {
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "depth": text.num_hidden_layers,
            "heads": text.num_attention_heads,
            "feed_forward": text.intermediate_size,
            "positions": text.max_position_embeddings,
            "eps": text.layer_norm_eps,
        },
        "embed": cfg.image_text_hidden_size,
    }
    # a folder of transformers begins texts as its tokenizer does; [ENC] stands there only if it was trained so
    begins = settings_beside(folder, "tokenizer_config.json").get("cls_token")
    begins = begins.get("content") if isinstance(begins, dict) else begins
    return {"task": {"type": CLASS_TASKS[classes[0]]}, "model": {**values, "enc_token": begins == "[ENC]"}}


def checkpoint_tokenizer(path: Path, source: str, vocabulary: int) -> Tokenizer:
    """Returns the tokenizer of a source, or the one beside a checkpoint, or BERT's.

    Raises ConfigError if its vocabulary is not that of the checkpoint.
    """
    folder = path if path.is_dir() else path.parent
    beside = any((folder / name).is_file() for name in TOKENIZER_FILES.required)
    if source:
        found = fetched_tokenizer(source)
    elif beside:
        found = Tokenizer.from_folder(folder)
    elif vocabulary == BERT_VOCABULARY:
        try:
            found = fetched_tokenizer(BERT)
        except ConfigError as error:
            raise ConfigError(f"model {path}: has no tokenizer beside it; {TOKENIZER_WAY_OUT}; {error}") from None
    else:
        raise ConfigError(
            f"model {path}: its {vocabulary} word pieces have no tokenizer beside it; {TOKENIZER_WAY_OUT}"
        )
    if found.vocab_size != vocabulary:
        raise ConfigError(
            f"model {path}: has embeddings of {vocabulary} word pieces, its tokenizer {source or folder} has "
            f"{found.vocab_size} with [DEC] and [ENC]; name another one by `blip import --tokenizer`"
        )
    return found


def queries_tokenizer(path: Path, kind: ModelKind, source: str) -> Tokenizer:
    """Returns the tokenizer of the Q-Former of a BLIP-2 of transformers: BERT's, which lies beside a matcher alone.

    Raises ConfigError if it is nowhere.
    """
    if source:
        return fetched_tokenizer(source)
    if kind == "blip2_matcher" and any((path / name).is_file() for name in TOKENIZER_FILES.required):
        return Tokenizer.from_folder(path)
    try:
        return fetched_tokenizer(BERT)
    except ConfigError as error:
        raise ConfigError(
            f"model {path}: the tokenizer of its Q-Former, BERT's, is not beside it; {TOKENIZER_WAY_OUT}; {error}"
        ) from None


def fetched_tokenizer(source: str) -> Tokenizer:
    """Returns the tokenizer of a source of weights. Raises ConfigError, StoreError."""
    with fetched(source, TOKENIZER_FILES) as path:
        return Tokenizer.from_folder(path)


def describe(folder: Path) -> str:
    """Returns one line on a model folder: task and sizes."""
    values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    vision, text = values["model"]["vision"], values["model"]["text"]
    depth = f" {vision['depth']} x" if "depth" in vision else ""
    return (
        f"{values['task']['type']}, {vision['size']} pixels, ViT{depth} {vision['width']}, "
        f"text {text['depth']} x {text['width']}, {text['vocab_size']} word pieces"
    )
