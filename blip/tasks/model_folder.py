"""A model folder: `config.json` (format, task, model), `model.safetensors`, `tokenizer/`, and a side file for training.

A model folder outlives the code that trained it, so it omits settings that only training reads: these may change.
"""

import json
from pathlib import Path
from typing import Any, Literal

from blip.config import Config, ConfigError, read_config, validate
from blip.data.tokenizer import Tokenizer
from blip.models.blip2 import Blip2Config, QueriedImages
from blip.models.config import AnyModelConfig
from blip.models.dialog import DialogModel
from blip.models.med import MED
from blip.models.nlvr import NLVRModel
from blip.models.vqa import VQAModel
from blip.models.weights.content import SIDE_FILE
from blip.models.weights.files import WeightsError, write_model
from blip.models.weights.load import Allowed, load_weights
from blip.tasks.alignment import AlignmentConfig
from blip.tasks.captioning import CaptioningConfig
from blip.tasks.config import TaskConfig
from blip.tasks.pretraining import Pretraining, PretrainingConfig
from blip.tasks.retrieval import Retrieval, RetrievalConfig
from blip.tasks.task import Task, TaskSettings
from blip.tasks.training_state import save_training_state

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"
MODEL_FORMAT = 1
"""Increased when the current code could not read the new layout; `upgrade` then converts the previous format."""


class ModelConfig(Config):
    """The content of `config.json`."""

    format: Literal[1] = MODEL_FORMAT
    task: TaskConfig
    """The task of the training, without the settings that only training reads."""
    model: AnyModelConfig


def save_model(task: Task, folder: str | Path, training_state: bool = True) -> None:
    """Saves a task's model folder: configuration, weights, tokenizer, and the training state as a side file.

    The training state, of pre-training and retrieval only, is teacher, queue and temperature. A model that another
    program trained has none.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config_values(task, folder), indent=1) + "\n", encoding="utf-8")
    write_model(task.model, folder / WEIGHTS)
    task.tokenizer.save(folder / TOKENIZER)
    if training_state and isinstance(task, Pretraining | Retrieval):
        save_training_state(task.alignment, folder / SIDE_FILE)


def config_values(task: Task, folder: Path) -> dict[str, Any]:
    """Returns the content of `config.json`; it names frozen models in the folder by their place there."""
    cfg, model = task.cfg, task.model
    assert isinstance(cfg, TaskSettings)
    assert isinstance(model, MED | VQAModel | NLVRModel | DialogModel | QueriedImages)
    settings = cfg.model_dump(mode="json", exclude=set(cfg.TRAINING))
    sizes = model.cfg.relative_to(folder) if isinstance(model.cfg, Blip2Config) else model.cfg
    return {"format": MODEL_FORMAT, "task": settings, "model": sizes.model_dump(mode="json")}


def read_model_config(folder: str | Path) -> ModelConfig:
    """Reads the configuration of a model folder in any format. Raises ConfigError if there is none or it is invalid."""
    path = Path(folder) / CONFIG
    cfg = validate(ModelConfig, upgrade(read_config(path), path), str(path))
    if isinstance(cfg.model, Blip2Config):
        return cfg.model_copy(update={"model": cfg.model.located(Path(folder))})
    return cfg


def upgrade(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Converts the values of `config.json` to the current format.

    Raises ConfigError if the format is newer, or if the folder is not a model folder.
    """
    match values.get("format", 0):
        case 0 if isinstance(values.get("task"), dict) and "model" in values:  # the whole configuration of the training
            training = TRAINING_OF_FORMAT_0
            task = {key: value for key, value in values["task"].items() if key not in training}
            return {"format": MODEL_FORMAT, "task": task, "model": values["model"]}
        case 0:
            raise ConfigError(f"{path}: holds no task and model, so this is no model folder that `blip train` wrote")
        case int(number) if number > MODEL_FORMAT:
            raise ConfigError(
                f"{path}: format is {number}, this version reads formats up to {MODEL_FORMAT}: use a newer version"
            )
    return values


TRAINING_OF_FORMAT_0 = ("alignment", "weights", "smoothing", "lm_reduction")
"""Task settings that only training reads, as format 0 named them."""


def load_task(folder: str | Path, task: TaskConfig | None = None) -> Task:
    """Loads a model in evaluation mode, with its own task or another one that uses its parts.

    Raises ConfigError if the other task needs parts that training for it would add, such as NLVR2's classifier.
    """
    cfg = read_model_config(folder)
    task = task or without_queue(cfg.task)
    tokenizer = Tokenizer.from_folder(Path(folder) / TOKENIZER)
    model = task.model_from(cfg.model)
    differences = task.DIFFERENCES
    if not isinstance(cfg.model, Blip2Config):  # whose frozen parts are elsewhere
        differences = Allowed(differences.unused)
    try:
        load_weights(model, str(Path(folder) / WEIGHTS), differences)
    except WeightsError as error:
        if task.type == cfg.task.type:
            raise
        raise WeightsError(
            f"model {folder} was trained for {cfg.task.type} and cannot do {task.type} yet: fine-tune it for that "
            f"first (blip train), or name another model; {error}"
        ) from None
    return task.build_task(model, tokenizer).eval()


def without_queue(cfg: TaskConfig) -> TaskConfig:
    """Returns the task configuration with a queue of length 1; only training uses the queue."""
    if isinstance(cfg, PretrainingConfig | RetrievalConfig):
        return cfg.model_copy(update={"alignment": AlignmentConfig(queue=1)})
    return cfg


def as_captioner(cfg: TaskConfig) -> CaptioningConfig:
    """Returns the captioning configuration of a model trained for `cfg`.

    Raises ConfigError if that is neither captioning nor pre-training.
    """
    match cfg:
        case CaptioningConfig():
            return cfg
        case PretrainingConfig():
            return CaptioningConfig(prompt="", text=cfg.text)
        case _:
            raise ConfigError(
                f"the captioner must be trained for captioning or pretraining, not for {cfg.type}; name another model"
            )


def as_filter(cfg: TaskConfig) -> RetrievalConfig:
    """Returns the retrieval configuration of a model trained for `cfg`.

    Raises ConfigError if that is neither retrieval nor pre-training.
    """
    match cfg:
        case RetrievalConfig():
            return cfg.model_copy(update={"alignment": AlignmentConfig(queue=1)})
        case PretrainingConfig():
            return RetrievalConfig(alignment=AlignmentConfig(queue=1), text=cfg.text)
        case _:
            raise ConfigError(
                f"the filter must be trained for retrieval or pretraining, not for {cfg.type}; name another model"
            )
