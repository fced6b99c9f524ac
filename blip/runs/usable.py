"""A look at a data set before any model runs: has it what a task learns from, or is scored by?"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from blip.config import ConfigError
from blip.evaluation.job import TASKS, EvaluateConfig
from blip.runs.config import RunConfig
from blip.shards.manifest import Manifest
from blip.shards.reading import browse_shard
from blip.shards.sample import BadSample, Sample, format_counts, one_sample

Check = Callable[[Sample], None]
"""Raises BadSample if a sample lacks what a task needs."""


def check_sources(cfg: RunConfig, data: Path) -> None:
    """Raises ConfigError if a source has no sample that the task can learn from."""
    for source in cfg.sources:
        manifest = Manifest.load(data / f"{source}.json")
        for reasons in without_usable_samples(manifest, {source: cfg.task.check_trained}).values():
            raise ConfigError(
                f"nothing to train on: none of the {manifest.samples} samples of {data / source}.json has "
                f"{cfg.task.TRAINED_ON}, from which {cfg.task.type} learns: {format_counts(reasons)}; name other data "
                "by --data or sources, or train another stage"
            )


def without_unscored(cfg: EvaluateConfig, manifest: Manifest) -> tuple[EvaluateConfig, dict[str, str]]:
    """Returns the settings without the tasks for which the split has nothing to score, and the reason for each.

    Raises ConfigError if it has nothing for any of them.
    """
    limit = cfg.evaluation.limit
    lacking = without_usable_samples(manifest, {n: task.check_scored for n, task in cfg.task_configs.items()}, limit)
    looked = manifest.samples if limit is None else min(limit, manifest.samples)
    reasons = {
        name: f"none of the {looked} samples of split {cfg.split} has {cfg.task_configs[name].SCORED_BY}: "
        f"{format_counts(counts)}"
        for name, counts in lacking.items()
    }
    if set(reasons) < set(cfg.task_configs):
        rest = tuple(name for name in cfg.tasks if name not in reasons)
        return cfg.model_copy(update={"tasks": rest, **dict.fromkeys(reasons)}), reasons
    others = EvaluateConfig(tasks=tuple(name for name in TASKS if name not in reasons))
    checks = {name: task.check_scored for name, task in others.task_configs.items()}
    served = [name for name in checks if name not in without_usable_samples(manifest, checks, limit)]
    found = f"; this one has some for {', '.join(served)}" if served else ""
    raise ConfigError(
        f"nothing to score: {'; '.join(f'{name}: {reason}' for name, reason in reasons.items())}; "
        f"set split or --data to a split with such samples{found}"
    )


def without_usable_samples(
    manifest: Manifest, checks: Mapping[str, Check], limit: int | None = None
) -> dict[str, Counter[str]]:
    """Returns the checks that no sample passes, by name, with the number of samples by the reason of their refusal.

    Looks at the first `limit` samples that can be read, and stops as soon as each check was passed, mostly at the first
    sample. Raises ShardError if a shard cannot be opened.
    """
    lacking = {name: Counter[str]() for name in checks}
    seen = 0
    for sample in samples_or_faults(manifest):
        for name in [*lacking]:
            if fault := fault_of(sample, checks[name]):
                lacking[name][fault] += 1
            else:
                del lacking[name]
        seen += isinstance(sample, Sample)
        if not lacking or seen == limit:
            break
    return lacking


def samples_or_faults(manifest: Manifest) -> Iterator[Sample | BadSample]:
    """Yields each sample, or the error of one that cannot be read."""
    for shard in manifest.shards:
        with browse_shard(manifest.store, shard) as file:
            for row in range(len(file)):
                try:
                    yield file[row]
                except BadSample as error:
                    yield error


def fault_of(sample: Sample | BadSample, check: Check) -> str:
    """Returns the reason for which a sample cannot be used; empty if it can be."""
    if isinstance(sample, BadSample):
        return str(sample)
    try:
        with one_sample(sample.id):
            check(sample)
    except BadSample as error:
        return str(error)
    return ""
