"""A training run's whole configuration: the parts' configs, and the rules that hold between them."""

from typing import Self

from pydantic import Field, model_validator

from blip.config import Config, ConfigError, stages
from blip.data.loader import LoaderConfig
from blip.data.tokenizer import Tokenizer
from blip.data.transforms import TransformConfig
from blip.models.med import MEDConfig, SpecialTokens
from blip.models.weights.init import InitConfig
from blip.tasks.build import TaskConfig, check_text_lengths, towers
from blip.tasks.pretraining import PretrainingConfig
from blip.tasks.retrieval import RetrievalConfig
from blip.training.checkpoint import CheckpointConfig
from blip.training.engine import EngineConfig, check_teacher
from blip.training.optimizer import OptimizerConfig, ScheduleConfig

OTHERS = {"ingest", "capfilt", "select", "evaluate", "register"}
"""Stages that train nothing."""


def training(stage: str) -> str:
    """Returns a stage that trains. Raises ConfigError for another one."""
    if stage in OTHERS:
        choices = [name for name in stages() if name not in OTHERS]
        raise ConfigError(f"stage {stage!r} is no training; choices: {', '.join(choices)}")
    return stage


class RunConfig(Config):
    seed: int = Field(default=42, ge=0, lt=2**63)
    epochs: float = Field(gt=0, le=1_000_000)
    """Passes over the data; a fraction is fine."""
    max_gpu_hours: float | None = Field(default=None, gt=0)
    """GPU hours that all steps of a run may take together; then it stops with a checkpoint. None sets no bound."""
    sources: tuple[str, ...] = Field(min_length=1)
    """Names of the manifests to learn from, in the data folder: `gold`, `web`, ..."""
    task: TaskConfig
    model: MEDConfig = MEDConfig()
    init: InitConfig = InitConfig()
    transform: TransformConfig = TransformConfig()
    loader: LoaderConfig = LoaderConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def teacher_is_whole(self) -> Self:
        check_teacher(self.engine, isinstance(self.task, PretrainingConfig | RetrievalConfig))
        return self

    @model_validator(mode="after")
    def sizes_agree(self) -> Self:
        if self.transform.size != self.model.vision.size:
            raise ValueError(
                f"transform.size is {self.transform.size} but model.vision.size is {self.model.vision.size}: "
                "the image encoder needs images of its own size, set both alike"
            )
        return self

    @model_validator(mode="after")
    def lengths_fit(self) -> Self:
        check_text_lengths(self.task, self.model)
        return self

    @model_validator(mode="after")
    def decayed_tower_exists(self) -> Self:
        known = towers(self.task)
        if self.optimizer.layer_decay_of not in known:
            raise ValueError(
                f"optimizer.layer_decay_of is {self.optimizer.layer_decay_of}, which a model for {self.task.type} does not have; "
                f"choices: {', '.join(known)}"
            )
        return self

    @property
    def itm_weight(self) -> float:
        """What the ITM loss is multiplied by."""
        return (self.task.weights.itm or 1.0) if isinstance(self.task, PretrainingConfig) else 1.0

    def with_tokenizer(self, tokenizer: Tokenizer) -> Self:
        """The same run with the tokenizer's vocabulary and special tokens in its model."""
        tokens = SpecialTokens(
            pad=tokenizer.pad, cls=tokenizer.cls, sep=tokenizer.sep, dec=tokenizer.dec, enc=tokenizer.enc
        )
        text = self.model.text.model_copy(update={"vocab_size": tokenizer.vocab_size})
        return self.model_copy(update={"model": self.model.model_copy(update={"text": text, "tokens": tokens})})
