"""A model folder: `config.json` (format, task, model), `model.safetensors`, `tokenizer/`, and for training a side file.

It outlives the training that wrote it: settings that only training reads are not in it, so that they can change their
names.
"""

import json
from pathlib import Path
from typing import Any, Literal

from blip.config import Config, ConfigError, read_config, validate
from blip.data.tokenizer import Tokenizer
from blip.models.med import MED, MEDConfig
from blip.models.nlvr import NLVRModel
from blip.models.vqa import VQAModel
from blip.models.weights.files import write_model
from blip.models.weights.load import load_weights
from blip.models.weights.source import SIDE_FILE
from blip.tasks.alignment import AlignmentConfig
from blip.tasks.captioning import CaptioningConfig
from blip.tasks.config import TaskConfig
from blip.tasks.pretraining import Pretraining, PretrainingConfig
from blip.tasks.retrieval import Retrieval, RetrievalConfig
from blip.tasks.task import Task, TaskSettings
from blip.tasks.training_state import save_training_state

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"
FORMAT = 1
"""Raised when a reader of today could not read what is written; `upgrade` then learns one more step."""


class ModelConfig(Config):
    """What `config.json` says of a model."""

    format: Literal[1] = FORMAT
    task: TaskConfig
    """The task it was trained for, without the settings that only training reads."""
    model: MEDConfig


def save_model(task: Task, folder: str | Path) -> None:
    """Writes what is needed to use the model, or to train it further: teacher, queue and temperature go to a side
    file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config_values(task), indent=1) + "\n")
    write_model(task.model, folder / WEIGHTS)
    task.tokenizer.save(folder / TOKENIZER)
    if isinstance(task, Pretraining | Retrieval):
        save_training_state(task.alignment, folder / SIDE_FILE)


def config_values(task: Task) -> dict[str, Any]:
    """The content of `config.json`."""
    cfg, model = task.cfg, task.model
    assert isinstance(cfg, TaskSettings)
    assert isinstance(model, MED | VQAModel | NLVRModel)
    settings = cfg.model_dump(mode="json", exclude=set(cfg.TRAINING))
    return {"format": FORMAT, "task": settings, "model": model.cfg.model_dump(mode="json")}


def read_model_config(folder: str | Path) -> ModelConfig:
    """The configuration of a model folder of any format so far. Raises ConfigError where there is none."""
    path = Path(folder) / CONFIG
    return validate(ModelConfig, upgrade(read_config(path), path), str(path))


def upgrade(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The values of `config.json` in the format of today. Raises ConfigError for a format that is newer, and for no
    model folder.
    """
    match values.get("format", 0):
        case 0 if isinstance(values.get("task"), dict) and "model" in values:  # the whole configuration of the training
            training = TRAINING_OF_FORMAT_0
            task = {key: value for key, value in values["task"].items() if key not in training}
            return {"format": FORMAT, "task": task, "model": values["model"]}
        case 0:
            raise ConfigError(f"{path}: holds no task and model, so this is no model folder that `blip train` wrote")
        case int(number) if number > FORMAT:
            raise ConfigError(
                f"{path}: format is {number}, this version reads formats up to {FORMAT}: use a newer version"
            )
    return values


TRAINING_OF_FORMAT_0 = ("alignment", "weights", "smoothing", "lm_reduction")
"""Settings of tasks that only training read, as format 0 named them."""


def load_task(folder: str | Path, task: TaskConfig | None = None) -> Task:
    """A model in evaluation mode, as the task it was trained for or another one that uses its parts."""
    cfg = read_model_config(folder)
    task = task or without_queue(cfg.task)
    tokenizer = Tokenizer.from_folder(Path(folder) / TOKENIZER)
    model = task.build_model(cfg.model)
    load_weights(model, str(Path(folder) / WEIGHTS), task.DIFFERENCES)
    return task.build_task(model, tokenizer).eval()


def without_queue(cfg: TaskConfig) -> TaskConfig:
    """The same task with the smallest queue: only training fills it."""
    if isinstance(cfg, PretrainingConfig | RetrievalConfig):
        return cfg.model_copy(update={"alignment": AlignmentConfig(queue=1)})
    return cfg


def as_captioner(cfg: TaskConfig) -> CaptioningConfig:
    """How a model writes that was trained for a task. Raises ConfigError where it cannot."""
    match cfg:
        case CaptioningConfig():
            return cfg
        case PretrainingConfig():
            return CaptioningConfig(prompt="", text=cfg.text)
        case _:
            raise ConfigError(f"the captioner must be trained for captioning or pretraining, not for {cfg.type}")


def as_filter(cfg: TaskConfig) -> RetrievalConfig:
    """How a model judges that was trained for a task. Raises ConfigError where it cannot."""
    match cfg:
        case RetrievalConfig():
            return cfg.model_copy(update={"alignment": AlignmentConfig(queue=1)})
        case PretrainingConfig():
            return RetrievalConfig(alignment=AlignmentConfig(queue=1), text=cfg.text)
        case _:
            raise ConfigError(f"the filter must be trained for retrieval or pretraining, not for {cfg.type}")
