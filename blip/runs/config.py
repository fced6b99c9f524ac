"""The configuration of a training run: the configurations of its parts, and checks across them."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from blip.config import Config, ConfigError, stages, training_stages
from blip.data.features import META
from blip.data.loader import LoaderConfig
from blip.data.tokenizer import Tokenizer
from blip.data.transforms import TransformConfig
from blip.models.blip2 import Blip2Config
from blip.models.config import AnyModelConfig
from blip.models.image_encoder import ImageEncoderConfig
from blip.models.med import MEDConfig, SpecialTokens
from blip.models.weights.init import InitConfig
from blip.runs.answers import AnswersConfig
from blip.shards.manifest import Manifest
from blip.tasks.blip2_stage1 import Blip2Stage1Config
from blip.tasks.blip2_stage2 import Blip2Stage2Config
from blip.tasks.config import TaskConfig
from blip.tasks.matching import check_padding
from blip.tasks.pretraining import PretrainingConfig
from blip.tasks.retrieval import RetrievalConfig
from blip.training.checkpoint import CheckpointConfig
from blip.training.engine import EngineConfig, check_teacher
from blip.training.optimizer import OptimizerConfig, ScheduleConfig


def training(stage: str) -> str:
    """Returns the name of a training stage. Raises ConfigError if the stage does not train."""
    if stage in stages() and stage not in training_stages():
        raise ConfigError(f"stage {stage!r} is not a training stage; choices: {', '.join(training_stages())}")
    return stage


class LeadConfig(Config):
    """The first part of a run, on some of its sources alone: clean pairs before noisy ones."""

    sources: tuple[str, ...] = Field(min_length=1)
    epochs: float = Field(gt=0, le=1_000_000)
    """Passes over these sources; may be a fraction."""


class RunConfig(Config):
    seed: int = Field(default=42, ge=0, lt=2**63)
    epochs: float | None = Field(default=None, gt=0, le=1_000_000)
    """Passes over the data, without those of `lead`; may be a fraction."""
    epoch_of: Literal["kept", "all"] = "kept"
    """What an epoch of a selection counts: the samples that it kept, or all that it was made from.

    With `all` a training on what CapFilt kept takes as many steps as one on everything, and the samples come more
    often."""
    steps: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Optimizer steps of the run, those of `lead` included, instead of `epochs`."""
    max_gpu_hours: float | None = Field(default=None, gt=0)
    """Limit of GPU hours of all steps of a run together; then training stops with a checkpoint. None sets no limit."""
    sources: tuple[str, ...] = Field(min_length=1)
    """Names of the data folder's manifests to train on: `gold`, `web`, ..."""
    repeats: dict[str, Annotated[int, Field(ge=1, le=1000)]] = Field(default_factory=dict)
    """How often an epoch takes each sample of a source, by the source's name; once if it is not named.

    With `gold: 4` a small clean set is not lost in a large noisy one."""
    lead: LeadConfig | None = None
    """What a run begins with. Where most of a small data set is noise, a model that starts on all of it learns little
    for long; after some passes over clean pairs it tells noise apart."""
    task: TaskConfig
    model: AnyModelConfig = MEDConfig()
    init: InitConfig = InitConfig()
    transform: TransformConfig = TransformConfig()
    loader: LoaderConfig = LoaderConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    answers: AnswersConfig | None = None
    """Questions about held-out images that the second stage of BLIP-2 answers while it trains; None for none."""

    @model_validator(mode="after")
    def teacher_is_whole(self) -> Self:
        check_teacher(self.engine, isinstance(self.task, PretrainingConfig | RetrievalConfig))
        return self

    @field_validator("sources")
    @classmethod
    def differ(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(sources)) < len(sources):
            raise ValueError(f"{', '.join(sources)}: a source is named twice; name each once")
        return sources

    @model_validator(mode="after")
    def repeats_and_lead_name_sources(self) -> Self:
        for setting, named in {"repeats": self.repeats, "lead.sources": self.lead.sources if self.lead else ()}.items():
            if unknown := sorted(set(named) - set(self.sources)):
                raise ValueError(
                    f"{setting} names {unknown[0]!r}, which is no source of this run; "
                    f"sources: {', '.join(self.sources)}"
                )
        return self

    @model_validator(mode="after")
    def has_a_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"epochs is {self.epochs} and steps is {self.steps}: a run needs one of them; set the one, and the "
                "other to null"
            )
        return self

    @model_validator(mode="after")
    def frozen_models_are_whole(self) -> Self:
        if self.engine.zero == 3 and isinstance(self.model, Blip2Config):
            raise ValueError(
                "engine.zero is 3, but this model has frozen parts: each process holds them whole, and ZeRO-3 would "
                "share out the few weights that are trained; set engine.zero to 2 or less, and for a smaller language "
                "model model.language_model.quantization"
            )
        return self

    @model_validator(mode="after")
    def features_are_of_whole_images(self) -> Self:
        kept = isinstance(self.task, Blip2Stage1Config | Blip2Stage2Config) and self.task.features
        changed = self.transform.min_scale < 1 or self.transform.flip or self.transform.augment != "none"
        if kept and changed:
            raise ValueError(
                "task.features is true, but transform changes images, whose features are kept as they are: set "
                "transform.min_scale=1, transform.flip=false and transform.augment=none"
            )
        if kept and isinstance(self.model, Blip2Config) and self.model.vision.trained:
            raise ValueError(
                "task.features is true, but model.vision.trained is too: an image encoder that changes needs images; "
                "set one of them to false"
            )
        return self

    @model_validator(mode="after")
    def answers_come_from_images(self) -> Self:
        if self.answers is None:
            return self
        if not isinstance(self.task, Blip2Stage2Config):
            raise ValueError(
                f"answers has a value, but task.type is {self.task.type}, and only blip2_stage2 answers questions "
                "while it trains; set answers=null"
            )
        if self.task.features:
            raise ValueError(
                "answers has a value, but task.features is true, so that the images that are asked about could not be "
                "encoded; set answers=null or task.features=false"
            )
        if self.answers.task.ask_qformer:
            raise ValueError(
                "answers.task.ask_qformer is true, but the Q-Former of a second stage reads no questions; set it to "
                "false"
            )
        return self

    @model_validator(mode="after")
    def processes_can_exchange_texts(self) -> Self:
        if isinstance(self.task, Blip2Stage1Config):  # here, as a model folder does not say what training compared
            check_padding(self.task.alignment.negatives, self.task.text)
        return self

    @model_validator(mode="after")
    def model_is_the_tasks(self) -> Self:
        self.task.check_model(self.model)
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
        self.task.check_text_lengths(self.model)
        return self

    @model_validator(mode="after")
    def decayed_tower_exists(self) -> Self:
        known = self.task.TOWERS
        if self.optimizer.layer_decay_of not in known:
            raise ValueError(
                f"optimizer.layer_decay_of is {self.optimizer.layer_decay_of}, which a model for {self.task.type} "
                f"does not have; choices: {', '.join(known)}"
            )
        return self

    @property
    def itm_weight(self) -> float:
        """The weight of the ITM loss."""
        return (self.task.weights.itm or 1.0) if isinstance(self.task, PretrainingConfig | Blip2Stage1Config) else 1.0

    def with_tokenizer(self, tokenizer: Tokenizer) -> Self:
        """Returns a copy whose model has the tokenizer's vocabulary size and special tokens."""
        tokens = SpecialTokens(
            pad=tokenizer.pad, cls=tokenizer.cls, sep=tokenizer.sep, dec=tokenizer.dec, enc=tokenizer.enc
        )
        # BLIP-2 has no [ENC], the last entry of the vocabulary
        size = tokenizer.vocab_size - isinstance(self.model, Blip2Config)
        text = self.model.text.model_copy(update={"vocab_size": size})
        return self.model_copy(update={"model": self.model.model_copy(update={"text": text, "tokens": tokens})})

    def check_data(self, manifests: Sequence[Manifest]) -> None:
        """Raises ConfigError if the data hold features where images are needed, the reverse, or another encoder's."""
        wanted = isinstance(self.task, Blip2Stage1Config | Blip2Stage2Config) and self.task.features
        for manifest in manifests:
            found = manifest.meta.get(META)
            if wanted and found is None:
                raise ConfigError(
                    f"task.features is true, but the data {manifest.name} hold images: make them features by "
                    "blip cache-features, or set task.features=false"
                )
            if found is not None and not wanted:
                raise ConfigError(
                    f"the data {manifest.name} hold features instead of images: set task.features=true, or name the "
                    "data that they were made of"
                )
            if wanted and isinstance(self.model, Blip2Config) and found != features_of(self.model.vision):
                raise ConfigError(
                    f"the features in the data {manifest.name} are of another image encoder, layer or size than "
                    "model.vision: make them anew by blip cache-features"
                )

    def with_frozen_models(self) -> Self:
        """Returns a copy that names the frozen models of BLIP-2 by digest.

        Raises ConfigError or WeightsError if one is missing, does not fit, or is not the one of a digest that is given.
        """
        if not isinstance(self.model, Blip2Config):
            return self
        return self.model_copy(update={"model": self.model.with_digests()})


def features_of(vision: ImageEncoderConfig) -> dict[str, Any]:
    """Returns what tells an image encoder's features from others: its weights' digest, the layer and the image size."""
    return vision.model_dump(mode="json", include={"digest", "layer", "size"})
