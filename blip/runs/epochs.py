"""The length of a run in optimizer steps."""

from collections.abc import Sequence

from blip.config import ConfigError
from blip.runs.config import RunConfig
from blip.shards.manifest import Manifest


def steps_of_epoch(cfg: RunConfig, manifests: Sequence[Manifest], steps: int) -> int:
    """Returns the optimizer steps that `cfg.epochs` and the schedules count as an epoch of these data.

    `steps` are those in which each kept sample is read.
    """
    if cfg.epoch_of == "kept":
        return steps
    samples = (cfg.repeats.get(name, 1) * found.chosen_from for name, found in zip(cfg.sources, manifests, strict=True))
    return sum(samples) // cfg.loader.batch


def count_steps(epochs: float, steps_per_epoch: int) -> int:
    """Returns the number of optimizer steps of a run. Raises ConfigError if it is 0."""
    steps = round(epochs * steps_per_epoch)
    if steps < 1:
        raise ConfigError(
            f"epochs is {epochs:g} and an epoch of this data has {steps_per_epoch} steps, so the run has none: "
            "raise epochs, or lower loader.batch"
        )
    return steps
