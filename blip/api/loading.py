"""Loads a trained model for inference, whatever wrote it."""

import os
from pathlib import Path

import torch

from blip import distributed
from blip.api.model import Model
from blip.config import ConfigError, one_line
from blip.data.tokenizer import Tokenizer
from blip.models.blip2 import Blip2, Blip2Config
from blip.models.med import MEDConfig
from blip.models.weights.load import load_weights
from blip.tasks.blip2_stage2 import Blip2Stage2Config
from blip.tasks.blip2_vqa import Blip2VQAConfig
from blip.tasks.captioning import CaptioningConfig
from blip.tasks.config import TaskConfig
from blip.tasks.model_folder import TOKENIZER, WEIGHTS, as_captioner, as_filter, read_model_config
from blip.tasks.pretraining import PretrainingConfig
from blip.tasks.retrieval import Retrieval, RetrievalConfig
from blip.tasks.vqa import VQAConfig
from blip.zoo.image_model import Precision
from blip.zoo.ours import to_bfloat16
from blip.zoo.source import naming, our_model


def load(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: Precision | torch.dtype = "float32",
    batch_size: int = 32,
) -> "Model":
    """Loads a BLIP for inference on a device: by default the GPU if there is one.

    A BLIP-2 of the second stage comes with its frozen models, which are found as in its training.
    `source` is a model folder that `blip train` or `blip import` wrote; a folder of transformers or a hub name such as
    `Salesforce/blip-image-captioning-base`; a `.pth` of the reference; `models:/NAME@ALIAS` or a run of MLflow.
    `dtype` is `float32` or `bfloat16`. `batch_size` is the number of images per forward pass; it bounds the memory of a
    call.

    Raises ConfigError if the model is missing, incomplete, no BLIP, or of a task that this API does not cover.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size!r}, must be a whole number, 1 or more")
    precision = DTYPES.get(dtype) if isinstance(dtype, str | torch.dtype) else None
    if precision is None:
        raise ConfigError(f"dtype is {dtype}, must be float32 or bfloat16")
    place = device_of(device)
    source = os.fspath(source)
    folder = our_model(source, "blip.load")
    with naming(source, folder):
        cfg = read_model_config(folder)
        roles = roles_of(cfg.task, folder)
    assert isinstance(cfg.model, MEDConfig | Blip2Config)
    model = cfg.task.build_model(cfg.model)  # pyright: ignore[reportArgumentType]  # roles_of took a task of this model
    load_weights(model, str(folder / WEIGHTS), cfg.task.DIFFERENCES)
    tokenizer = Tokenizer.from_folder(folder / TOKENIZER)
    if isinstance(model, Blip2):
        roles = [role.fitted(model) if isinstance(role, Blip2VQAConfig) else role for role in roles]
    tasks = [role.build_task(model, tokenizer).eval() for role in roles]  # pyright: ignore[reportArgumentType]
    for task in tasks:
        if isinstance(task, Retrieval):
            del task.alignment  # training's momentum copy of the model
    model.to(place)
    if precision == "bfloat16":
        to_bfloat16(model)
    return Model(Path(source), cfg.task.type, tasks, cfg.model.vision.size, batch_size, precision)


def device_of(device: str | torch.device | None) -> torch.device:
    """Returns the device of a name, or this process's. Raises ConfigError if there is no such device."""
    if device is None:
        return distributed.device()
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(f"device is {device!r}, which cannot be used: {one_line(str(error))[:200]}") from None


DTYPES: dict[object, Precision] = {
    "float32": "float32",
    torch.float32: "float32",
    "bfloat16": "bfloat16",
    torch.bfloat16: "bfloat16",
}


def roles_of(cfg: TaskConfig, folder: Path) -> list[TaskConfig]:
    """Returns the tasks that a model trained for `cfg` can perform. Raises ConfigError if there are none."""
    match cfg:
        case PretrainingConfig():
            return [as_captioner(cfg), as_filter(cfg)]
        case CaptioningConfig():
            return [cfg]
        case RetrievalConfig():
            return [as_filter(cfg)]
        case VQAConfig():
            # the answer list is not part of the folder: `answer` takes it as an argument
            return [cfg.model_copy(update={"inference": "generate", "answer_list": None})]
        case Blip2Stage2Config():
            return [cfg, Blip2VQAConfig()]
        case Blip2VQAConfig():
            return [cfg]
        case _:
            known = "captioning, pretraining, retrieval, vqa, blip2_stage2 and blip2_vqa"
            raise ConfigError(f"model {str(folder)!r} was trained for {cfg.type}; load() takes models of {known}")
