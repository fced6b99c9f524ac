"""The stages of the pipelines: their configuration classes, and their share of a pipeline's overrides."""

from collections.abc import Sequence

from blip.config import Config, ConfigError, load_config

BOOTSTRAP = ("ingest", "pretrain", "captioner", "filter", "capfilt", "select", "evaluate", "register")
"""The stages of the bootstrap."""
TASKS = ("retrieval", "captioning", "vqa", "nlvr", "dialog")
"""The stages that fine-tune a model for a downstream task."""
DOWNSTREAM = (*TASKS, "evaluate", "register")
"""The stages of the downstream pipeline, besides the ingestion of each task."""
BLIP2 = ("ingest", "frozen", "blip2_stage1", "blip2_stage2", "blip2_stage2_t5", "evaluate", "register")
"""The stages of BLIP-2, with a decoder-only language model and one of encoder and decoder."""
BLIP2_CAPFILT = (*BLIP2, "capfilt", "select")
"""The stages of BLIP-2 on texts that CapFilt selects."""
PIPELINES = {"bootstrap": BOOTSTRAP, "blip2": BLIP2, "blip2_capfilt": BLIP2_CAPFILT}
"""The stages of the pipelines that name models, by the pipeline's name."""
PLANNED = tuple(dict.fromkeys((*BOOTSTRAP, *BLIP2_CAPFILT, "report")))
"""The stages of all of these, in the order in which the step `plan` returns their settings."""
BLIP2_TASKS = ("blip2_captioning", "blip2_vqa", "blip2_retrieval")
"""The stages that fine-tune BLIP-2 for a downstream task."""


def config_classes() -> dict[str, type[Config]]:
    """Returns the configuration class of each stage. Imports them late, because that takes seconds."""
    from blip.capfilt.job import CapFiltConfig
    from blip.capfilt.rules import SelectionConfig
    from blip.runs.config import RunConfig
    from blip.runs.data_config import IngestConfig
    from blip.runs.evaluate import EvaluateConfig
    from blip.runs.make_frozen import FrozenConfig
    from blip.runs.register import RegisterConfig

    return {
        "ingest": IngestConfig,
        "pretrain": RunConfig,
        "captioner": RunConfig,
        "filter": RunConfig,
        "capfilt": CapFiltConfig,
        "select": SelectionConfig,
        "evaluate": EvaluateConfig,
        "register": RegisterConfig,
        **dict.fromkeys((*TASKS, "retrieval_flickr30k"), RunConfig),
        "frozen": FrozenConfig,
        **dict.fromkeys(("blip2_stage1", "blip2_stage2", "blip2_stage2_t5", *BLIP2_TASKS), RunConfig),
    }


def overrides_for(stage: str, overrides: Sequence[str], max_gpu_hours: float = 0.0) -> list[str]:
    """Returns the overrides `stage.key=value` of one stage as `key=value`, and the bound of the run's GPU hours.

    The bound is left out for a stage that uses no GPUs, and if it is 0.
    """
    bound = [f"max_gpu_hours={max_gpu_hours}"] if max_gpu_hours and uses_gpus(stage) else []
    return bound + [override.removeprefix(f"{stage}.") for override in overrides if override.startswith(f"{stage}.")]


def uses_gpus(stage: str) -> bool:
    """Returns whether a stage's GPU hours can be bounded."""
    cls = config_classes().get(stage)
    return cls is not None and "max_gpu_hours" in cls.model_fields


def without_placement(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides of stages, without those that begin with `placement.`, which say where the work is done."""
    return [override for override in overrides if not override.startswith("placement.")]


def load_stages(preset: str, overrides: Sequence[str], names: Sequence[str] = BOOTSTRAP) -> dict[str, Config]:
    """Loads the configuration of a pipeline's stages. Raises ConfigError with all mistakes, one per line."""
    classes = config_classes()
    stages = {name: classes[name] for name in names}
    found: dict[str, Config] = {}
    wrong = [
        f"override {override!r} must begin with its stage, one of: {', '.join(stages)}; "
        "for example pretrain.optimizer.lr=1e-3"
        for override in overrides
        if override.partition(".")[0] not in stages
    ]
    for stage, cls in stages.items():
        try:
            found[stage] = load_config(cls, stage, preset, overrides_for(stage, overrides))
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigError("\n".join(dict.fromkeys(wrong)))  # a preset that is none is the same mistake for all stages
    return found
