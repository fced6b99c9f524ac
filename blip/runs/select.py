"""Select: which texts of a web that CapFilt has scored are kept, in seconds, without a model and without an image."""

import json
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from blip.capfilt.job import CapFiltConfig
from blip.capfilt.rules import SelectionConfig
from blip.capfilt.scores import Scores, ScoresSource
from blip.capfilt.selected import write_selection
from blip.config import ConfigError, load_config, merged, set_value, validate
from blip.data.judge import judge_of
from blip.data.manifest import Manifest
from blip.logs import log
from blip.report import capfilt_page
from blip.report.capfilt_figures import SelectionFigures, save_pictures
from blip.results import SOURCES, SelectResult, numbers
from blip.runs.context import RunContext
from blip.tracking import DataInput, start_run
from blip.workers.queue import last_errors

SCORES, MANIFEST, METRICS, PICTURES = "scores.json", "bootstrapped.json", "metrics.json", "pictures.json"
OWN = (SCORES, MANIFEST, METRICS, PICTURES, "logs", "store")
"""What a step writes itself, and does not take over from the data folder that it reads."""


def select(
    context: RunContext, *, data: str | Path, out: str | Path, page: str | Path | None = None, threshold: str = ""
) -> SelectResult:
    """Selects among the texts that `capfilt` scored and makes `out`, the data folder to pre-train on again.

    `data` is the folder that `capfilt` wrote, or one of an earlier selection. In `out` `bootstrapped.json`, also under the web manifest's
    name, says what was kept, and all else is as in `data`. `threshold` is the p(match) from which on a text is kept, `0.6` or by source
    `web=0.7`; what it does not name stays. Without a preset the settings are those of the selection that made `data`, or the recipe's.
    `out` gets figures and pictures, `page` a page of them.
    Raises ConfigError; ShardError where scores are missing or altered.
    """
    began = time.monotonic()
    source = read_source(data)
    cfg = settings(context, data, threshold)
    scores = Scores.load(source)
    job = scores.job
    folder = Path(out)
    web = manifest_name(job.config)
    take_over(Path(data), folder, leave_out={web})
    figures = SelectionFigures(job.input.store, judge_of(job.input))
    parents = {"scores": source.digest, "data": job.input.digest, **job.digests}
    inputs = [DataInput(job.config.source, job.input.digest, job.input.root, "select", job.input.samples)]
    with start_run("select", tags={"revision": context.revision}, parents=parents, inputs=inputs) as run:
        run.params(cfg.model_dump(mode="json"))
        manifest = write_selection(scores, cfg, context.revision, figures)
        for file in (MANIFEST, web):
            manifest.save(folder / file)
        write_source(source, folder)
        pictures = figures.pictures()
        save_pictures(pictures, folder / PICTURES)
        result = figures.result(manifest, last_errors(scores.dead), run.url, time.monotonic() - began)
        result.save(folder / METRICS)
        if page:
            Path(page).parent.mkdir(parents=True, exist_ok=True)
            Path(page).write_text(capfilt_page.capfilt_html(result, pictures))
        run.metrics({f"capfilt/{name}": value for name, value in numbers(result.capfilt.model_dump())})
        for file in (MANIFEST, METRICS, PICTURES):
            run.artifact(folder / file)
        if not manifest.samples:
            log.warning("no text of %d images is kept: see the counts in %s", result.counts["images"], folder / METRICS)
        return result


def settings(context: RunContext, data: str | Path, threshold: str) -> SelectionConfig:
    """The selection's settings: a preset's, or those that made the folder; then the threshold; then the overrides. Raises ConfigError."""
    before = Path(data, MANIFEST)
    if not context.preset and before.is_file():
        base = validate(SelectionConfig, Manifest.load(before).meta.get("selection", {}), f"selection of {before}")
    else:
        base = load_config(SelectionConfig, "select", context.preset or "base")
    values = base.model_dump(mode="json")
    if threshold:
        values["rule"] = with_threshold(values["rule"], threshold)
    changes: dict[str, Any] = {}
    for override in context.overrides:
        set_value(changes, override)
    return validate(SelectionConfig, merged(values, changes), "select")


def with_threshold(rule: dict[str, Any], text: str) -> dict[str, Any]:
    """A rule with the p(match) that `0.6` names for both sources, or `web=0.7` for one; all else of it stays. Raises ConfigError."""
    parts = [part.strip() for part in text.split(",")]
    pairs = [part.partition("=") for part in parts] if "=" in text else [(source, "=", text) for source in SOURCES]
    given: dict[str, float] = {}
    for source, _, value in pairs:
        name = source.strip()
        if name not in SOURCES or name in given:
            raise ConfigError(
                f"threshold {text!r}: {name!r} must be web or synthetic, and each once; for example web=0.7,synthetic=0.5"
            )
        try:
            given[name] = float(value)
        except ValueError:
            raise ConfigError(
                f"threshold {text!r} must be a number from 0 to 1, or one for each source: web=0.7,synthetic=0.5"
            ) from None
        if not 0 <= given[name] <= 1:
            raise ConfigError(f"threshold {text!r}: {value} must be a number from 0 to 1")
    if rule["type"] == "matched":
        return {**rule, **given}
    if len(given) < len(SOURCES):
        raise ConfigError(
            f"threshold {text!r}: the rule so far is {rule['type']!r}, which has none to keep: name both web and synthetic"
        )
    return {"type": "matched", **given}


def read_source(data: str | Path) -> ScoresSource:
    """The scores that a folder names. Raises ConfigError where it names none."""
    path = Path(data, SCORES)
    if not path.is_file():
        earlier = ", or, where an earlier version wrote it, run capfilt again" if Path(data, MANIFEST).is_file() else ""
        raise ConfigError(
            f"data {str(data)!r} has no {SCORES}: name the folder that `blip capfilt` or `blip select` wrote{earlier}"
        )
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"scores {path} is not JSON: {error}") from None
    return validate(ScoresSource, values, f"scores {path}")


def write_source(source: ScoresSource, folder: Path) -> None:
    (folder / SCORES).write_text(source.model_dump_json(indent=1) + "\n")


def manifest_name(cfg: CapFiltConfig) -> str:
    """The file of a data folder that the web's manifest stands in."""
    return f"{cfg.source}.json" if is_name(cfg.source) else "web.json"


def is_name(source: str) -> bool:
    """Whether a source is a manifest of the data folder rather than tars somewhere."""
    return not any(mark in source for mark in "/{.")


def take_over(data: Path, out: Path, leave_out: Collection[str]) -> None:
    """Copies a data folder's manifests and tokenizer, but for the step's own files and those left out. Raises ConfigError."""
    if out.resolve() == data.resolve():
        raise ConfigError(f"out {str(out)!r} is the data folder itself: name another one")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out {str(out)!r} is a file: name a folder")
    own = {*OWN, *leave_out}
    shutil.copytree(data, out, ignore=lambda folder, _: own if Path(folder) == data else (), dirs_exist_ok=True)
    for name in own & {path.name for path in out.iterdir() if path.is_file()}:
        (out / name).unlink()  # of an earlier run: nobody should take it for this one's
