"""A task and its model from their configuration, chosen by type."""

from typing import Annotated, assert_never

from pydantic import Field
from torch import nn

from blip.config import ConfigError
from blip.data.tokenizer import Tokenizer
from blip.models.generation import Beam, check_room
from blip.models.med import MED, MEDConfig
from blip.models.nlvr import NLVRModel
from blip.models.vqa import VQAModel
from blip.models.weights.load import TRAINING_STATE, Allowed
from blip.tasks.captioning import Captioning, CaptioningConfig
from blip.tasks.nlvr import NLVR, NLVRConfig
from blip.tasks.pretraining import Pretraining, PretrainingConfig
from blip.tasks.retrieval import Retrieval, RetrievalConfig
from blip.tasks.task import Task
from blip.tasks.vqa import VQA, VQAConfig

TaskConfig = Annotated[
    PretrainingConfig | CaptioningConfig | RetrievalConfig | VQAConfig | NLVRConfig, Field(discriminator="type")
]


def check_text_lengths(cfg: TaskConfig, model: MEDConfig) -> None:
    """Raises ConfigError where a task's texts are longer than the model has positions.

    A prompt counts as its words here, which are at least as many tokens; the task itself counts its tokens.
    """
    positions = model.text.positions
    match cfg:
        case PretrainingConfig() | CaptioningConfig() | RetrievalConfig() | NLVRConfig():
            lengths = {"text.tokens": cfg.text.tokens}
        case VQAConfig():
            lengths = {"question.tokens": cfg.question.tokens, "answer_tokens": cfg.answer_tokens}
        case _:
            assert_never(cfg)
    for name, tokens in lengths.items():
        if tokens > positions:
            raise ConfigError(
                f"task.{name} is {tokens}, but model.text.positions is {positions}: lower the one to {positions} "
                "or raise the other"
            )
    match cfg:
        case CaptioningConfig():
            check_room(cfg.decoding, 1 + len(cfg.prompt.split()), positions)
        case VQAConfig():
            check_room(cfg.decoding, 1, positions)
        case PretrainingConfig():
            # how far it has come is seen by captions of the default length
            check_room(Beam(), 1, positions)
        case RetrievalConfig() | NLVRConfig():
            pass
        case _:
            assert_never(cfg)


def build_model(cfg: TaskConfig, model: MEDConfig) -> nn.Module:
    """The model that a task trains, with what it needs and no more."""
    match cfg:
        case PretrainingConfig():
            return MED(model)
        case CaptioningConfig():
            return MED(model, encoder=False)
        case RetrievalConfig():
            return MED(model, decoder=False)
        case VQAConfig():
            return VQAModel(model)
        case NLVRConfig():
            return NLVRModel(model)
        case _:
            assert_never(cfg)


def towers(cfg: TaskConfig) -> tuple[str, ...]:
    """The stacks of layers in a task's model, by the part of their parameters' names that tells them."""
    match cfg:
        case PretrainingConfig() | VQAConfig():
            return ("visual_encoder", "text_encoder", "text_decoder")
        case CaptioningConfig():
            return ("visual_encoder", "text_decoder")
        case RetrievalConfig() | NLVRConfig():
            return ("visual_encoder", "text_encoder")
        case _:
            assert_never(cfg)


def build_task(cfg: TaskConfig, model: nn.Module, tokenizer: Tokenizer) -> Task:
    """A task around a model of `build_model`, whose weights are as they should be: a teacher starts as a copy of
    them.
    """
    match cfg:
        case PretrainingConfig():
            assert isinstance(model, MED)
            return Pretraining(cfg, model, tokenizer)
        case CaptioningConfig():
            assert isinstance(model, MED)
            return Captioning(cfg, model, tokenizer)
        case RetrievalConfig():
            assert isinstance(model, MED)
            return Retrieval(cfg, model, tokenizer)
        case VQAConfig():
            assert isinstance(model, VQAModel)
            return VQA(cfg, model, tokenizer)
        case NLVRConfig():
            assert isinstance(model, NLVRModel)
            return NLVR(cfg, model, tokenizer)
        case _:
            assert_never(cfg)


def allowed_differences(cfg: TaskConfig) -> Allowed:
    """How a checkpoint of pre-training may differ from a task's model: parts that the task leaves, and parts that are
    new to it.
    """
    heads = ("vision_proj.*", "text_proj.*", "itm_head.*")
    match cfg:
        case PretrainingConfig():
            return Allowed(unused=TRAINING_STATE)
        case CaptioningConfig():
            return Allowed(unused=(*TRAINING_STATE, *heads, "text_encoder.*"))
        case RetrievalConfig():
            return Allowed(unused=(*TRAINING_STATE, "text_decoder.*", "lm_head.*"))
        case VQAConfig():
            return Allowed(unused=(*TRAINING_STATE, *heads))
        case NLVRConfig():
            unused = (*TRAINING_STATE, *heads, "text_decoder.*", "lm_head.*")
            return Allowed(unused=unused, missing=("text_encoder.*.cross_attention.merge.*", "cls_head.*"))
        case _:
            assert_never(cfg)
