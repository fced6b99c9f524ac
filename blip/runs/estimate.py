"""Estimate: how long the bootstrap's trainings take on this machine, told before they begin.

`python -m blip.runs.estimate IMAGES PRESET SETTING...` prints it as a line, for whoever starts the pipeline.
"""

import sys
import time
from collections.abc import Mapping, Sequence

import torch

from blip.batch import Example
from blip.config import EXIT_CONFIG, ConfigError, load_config
from blip.data.tokenizer import Tokenizer
from blip.distributed import device
from blip.runs.config import RunConfig
from blip.runs.shares import DEFAULT_SPLIT, parse_split
from blip.runs.stages import overrides_for
from blip.training.engine import precision

TRAININGS = ("pretrain", "captioner", "filter", "pretrain")
"""The bootstrap's trainings; the second pre-training is taken to be as long as the first."""
TEXT = "a small red house between two green trees"
TRIED = 4
"""Images of the step that is measured."""
SPLIT = "ingest.data.split="


def images_by_source(images: int, settings: Sequence[str]) -> dict[str, float]:
    """Returns the number of images of gold and web, by the shares that the settings name. Raises ConfigError."""
    named = [setting.removeprefix(SPLIT) for setting in settings if setting.startswith(SPLIT)]
    shares = parse_split((named or [DEFAULT_SPLIT])[-1])
    both = shares.get("train", 0.0)
    return {source: images * (shares.get(source, 0.0) + both) for source in ("gold", "web")}


def images_seen(cfg: RunConfig, sources: Mapping[str, float]) -> float:
    """Returns how many images a training sees, each as often as it comes."""
    if cfg.steps:
        return cfg.steps * cfg.loader.batch
    lead = cfg.lead.epochs * sum(sources.get(name, 0.0) for name in cfg.lead.sources) if cfg.lead else 0.0
    epoch = sum(cfg.repeats.get(name, 1) * sources.get(name, 0.0) for name in cfg.sources)
    return lead + (cfg.epochs or 0.0) * epoch


def seconds_per_image(cfg: RunConfig) -> float:
    """Returns what an image costs in a training step on this machine, by the second step of a few images."""
    tokenizer = Tokenizer.train([TEXT], vocab_size=100)
    cfg = cfg.with_tokenizer(tokenizer)
    task = cfg.task.build_task(cfg.task.model_from(cfg.model), tokenizer).to(device()).train()
    size = cfg.transform.size
    examples = [Example(str(i), torch.full((3, size, size), i, dtype=torch.uint8), [TEXT]) for i in range(TRIED)]
    batch = task.collate(examples).to(device())
    bf16 = precision(cfg.engine) == "bf16"
    seconds = 0.0
    for step in range(2):
        began = time.perf_counter()
        task.on_step(step, 1)
        task.look_ahead([batch])
        with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
            losses = task(batch)
        torch.stack([*losses.values()]).sum().backward()
        seconds = time.perf_counter() - began
    return seconds / TRIED


def estimate(images: int, preset: str, settings: Sequence[str]) -> str:
    """Returns a line on the images that all trainings of the bootstrap see, and their time. Raises ConfigError."""
    trainings = [load_config(RunConfig, stage, preset, overrides_for(stage, settings)) for stage in TRAININGS]
    sources = images_by_source(images, settings)
    seen = sum(images_seen(cfg, sources) for cfg in trainings)
    said = f"  its four trainings see about {rounded(seen):,} images"
    if torch.cuda.is_available():  # a step of a few images says little about a GPU
        return said
    hours = seen * seconds_per_image(trainings[0]) / 3600
    return (
        f"{said}, which takes {in_words(hours)} on this machine's processors, by a step that was measured now; a "
        "smaller pretrain.epochs takes less"
    )


def rounded(number: float) -> int:
    """Returns a number with two digits that count."""
    return int(float(f"{number:.1e}"))


def in_words(hours: float) -> str:
    """Formats a rough duration: `about 12 minutes`, `about 5 hours`, `about 3 days`."""
    if hours < 1:
        return f"about {max(1, round(60 * hours))} minutes"
    return f"about {round(hours)} hours" if hours < 48 else f"about {round(hours / 24)} days"


def main() -> None:
    """Prints the estimate for the arguments: a number of images, a preset, and the pipeline's settings."""
    images, preset, *settings = sys.argv[1:]
    try:
        print(estimate(int(images), preset, settings))  # noqa: T201
    except ConfigError as error:  # the plan says it, too, and in full
        print(error, file=sys.stderr)  # noqa: T201
        raise SystemExit(EXIT_CONFIG) from None


if __name__ == "__main__":
    main()
