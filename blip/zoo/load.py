"""Loads captioners and filters from local folders, whoever made them."""

from pathlib import Path
from typing import assert_never

from blip.config import ConfigError
from blip.distributed import device
from blip.models.generation import Decoding
from blip.tasks.blip2_stage1 import Blip2Stage1, Blip2Stage1Config
from blip.tasks.blip2_stage2 import Blip2Stage2, Blip2Stage2Config
from blip.tasks.captioning import Captioning
from blip.tasks.model_folder import as_captioner, as_filter, load_task, read_model_config
from blip.tasks.pretraining import Pretraining
from blip.tasks.retrieval import Retrieval
from blip.zoo.blip2 import Blip2Captioner, Blip2Filter
from blip.zoo.config import DualEncoderConfig, VisionLanguageConfig
from blip.zoo.contract import Captioner, Filter
from blip.zoo.image_model import Precision
from blip.zoo.ours import OurCaptioner, OurFilter
from blip.zoo.recognise import recognise


def load_captioner(
    folder: Path, decoding: Decoding, seed: int, precision: Precision, cfg: VisionLanguageConfig
) -> Captioner:
    """Loads a folder as captioner to this process's device. Raises ConfigError if its model cannot caption."""
    match recognise(folder):
        case "ours":
            asked = read_model_config(folder).task
            if isinstance(asked, Blip2Stage2Config):
                reader = load_task(folder)
                assert isinstance(reader, Blip2Stage2)
                return Blip2Captioner(reader.to(device()), decoding, seed, precision)
            task = load_task(folder, as_captioner(asked))
            assert isinstance(task, Captioning)
            return our_captioner(task, decoding, seed, precision)
        case "blip" | "official":
            raise not_converted("captioner", folder)
        case "vision_language" | "blip2_generator":
            from blip.zoo.vision_language import VisionLanguageCaptioner

            return VisionLanguageCaptioner(folder, decoding, seed, cfg)
        case "open_clip" | "dual_encoder" | "blip2_matcher":
            raise ConfigError(f"captioner {folder}: this model writes no texts; name it as filter")
        case other:
            assert_never(other)


def load_filter(folder: Path, precision: Precision, cfg: DualEncoderConfig) -> Filter:
    """Loads a folder as filter to this process's device. Raises ConfigError if its model cannot score texts."""
    match recognise(folder):
        case "ours":
            asked = read_model_config(folder).task
            if isinstance(asked, Blip2Stage1Config):
                matcher = load_task(folder)
                assert isinstance(matcher, Blip2Stage1)
                return Blip2Filter(matcher.to(device()), precision)
            task = load_task(folder, as_filter(asked))
            assert isinstance(task, Retrieval)
            return our_filter(task, precision)
        case "blip" | "official" | "blip2_matcher":
            raise not_converted("filter", folder)
        case "dual_encoder":
            from blip.zoo.dual_encoder import TransformersDualEncoder

            return TransformersDualEncoder(folder, cfg)
        case "open_clip":
            from blip.zoo.dual_encoder import OpenClipDualEncoder

            return OpenClipDualEncoder(folder, cfg)
        case "vision_language" | "blip2_generator":
            raise ConfigError(f"filter {folder}: this model writes texts but scores none; name it as captioner")
        case other:
            assert_never(other)


def check_captioner(folder: Path) -> None:
    """Raises ConfigError if the model of a folder cannot caption; loads no weights."""
    match recognise(folder):
        case "ours":
            asked = read_model_config(folder).task
            if not isinstance(asked, Blip2Stage2Config):
                as_captioner(asked)
        case "vision_language" | "blip2_generator":
            pass
        case _:
            raise ConfigError(f"captioner {folder}: this model writes no texts; name it as filter")


def check_filter(folder: Path) -> None:
    """Raises ConfigError if the model of a folder cannot score texts; loads no weights."""
    match recognise(folder):
        case "ours":
            asked = read_model_config(folder).task
            if not isinstance(asked, Blip2Stage1Config):
                as_filter(asked)
        case "open_clip" | "dual_encoder":
            pass
        case _:
            raise ConfigError(f"filter {folder}: this model writes texts but scores none; name it as captioner")


def load_both(folder: Path, decoding: Decoding, seed: int, precision: Precision) -> tuple[Captioner, Filter]:
    """Loads a pre-trained model of ours once, as captioner and filter. Raises ConfigError if it is not both."""
    both = load_task(folder)
    if not isinstance(both, Pretraining):
        raise ConfigError(f"model {folder} is given as captioner and filter: only a pre-trained model is both")
    captioner = Captioning(as_captioner(both.cfg), both.model, both.tokenizer)
    judge = Retrieval(as_filter(both.cfg), both.model, both.tokenizer)
    return our_captioner(captioner, decoding, seed, precision), our_filter(judge, precision)


def our_captioner(task: Captioning, decoding: Decoding, seed: int, precision: Precision) -> OurCaptioner:
    return OurCaptioner(task.eval().to(device()), decoding, seed, precision)


def our_filter(task: Retrieval, precision: Precision) -> OurFilter:
    del task.alignment  # used only in training
    return OurFilter(task.eval().to(device()), precision)


def not_converted(role: str, folder: Path) -> ConfigError:
    """Returns the error for a checkpoint of BLIP that was not converted to a model folder."""
    return ConfigError(f"{role} {folder}: is a checkpoint of BLIP; convert it by blip import {folder} --out FOLDER")
