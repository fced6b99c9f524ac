"""Select: selects among the texts that CapFilt scored, in seconds, without reading models or images."""

import json
import math
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from blip.capfilt.job import CapFiltConfig
from blip.capfilt.rules import Combined, Limit, SelectionConfig
from blip.capfilt.scores import Scores, ScoresSource
from blip.capfilt.selected import write_selection
from blip.config import ConfigError, load_config, merged, set_value, validate
from blip.datasets.judge import judge_of
from blip.logs import log
from blip.report import capfilt_page
from blip.report.capfilt_figures import SelectionFigures, save_pictures
from blip.results import SOURCES, SelectResult, numbers
from blip.runs.context import RunContext
from blip.shards.manifest import Manifest
from blip.storage import output_folder, write_file
from blip.tracking import DataInput, start_run
from blip.workers.queue import last_errors

SCORES, MANIFEST, METRICS, PICTURES = "scores.json", "bootstrapped.json", "metrics.json", "pictures.json"
OWN_FILES = (SCORES, MANIFEST, METRICS, PICTURES, "logs", "store")
"""Outputs of `capfilt` and `select` themselves, which are not copied from the input folder."""


def select(
    context: RunContext,
    *,
    data: str | Path,
    out: str | Path,
    page: str | Path | None = None,
    threshold: str = "",
    by: str = "",
    precision: float | None = None,
) -> SelectResult:
    """Selects among the texts that `capfilt` scored, and writes `out`, the data folder to pre-train on again.

    `data` is the output of `capfilt` or of an earlier selection. `out` is a copy of it with the selection's manifest,
    `bootstrapped.json`, also under the web manifest's name, and with figures and pictures; `page` gets an HTML page of
    them. `threshold` is the least p(match) of kept texts, `0.6` or by source `web=0.7`, or the share of texts to keep,
    `30%`; sources that it does not name keep theirs. `by` is the column of another score for it, `clip.similarity`.
    `precision` is the share of true texts among the web texts to keep, 0 to 1, which decoys estimate.
    Without a preset the settings are those of the selection that wrote `data`, or the recipe's.
    Raises ConfigError; ShardError if scores are missing or altered.
    """
    began = time.monotonic()
    source = read_source(data)
    cfg = settings(context, data, threshold, by, precision)
    scores = Scores.load(source)
    job = scores.job
    web = manifest_name(job.config)
    copy_data_folder(Path(data), Path(out), leave_out={web})
    figures = SelectionFigures(job.input.store, judge_of(job.input))
    parents = {"scores": source.digest, "data": job.input.digest, **job.digests}
    inputs = [DataInput(job.config.source, job.input.digest, job.input.root, "select", job.input.samples)]
    with start_run("select", tags={"revision": context.revision}, parents=parents, inputs=inputs) as run:
        run.params(cfg.model_dump(mode="json"))
        manifest = write_selection(scores, cfg, context.revision, figures)
        pictures = figures.pictures()
        result = figures.result(manifest, last_errors(scores.dead), run.url, time.monotonic() - began)
        with output_folder(out) as folder:
            for file in (MANIFEST, web):
                manifest.save(folder / file)
            write_source(source, folder)
            save_pictures(pictures, folder / PICTURES)
            result.save(folder / METRICS)
        if page:
            write_file(page, capfilt_page.capfilt_html(result, pictures))
        run.metrics({f"capfilt/{name}": value for name, value in numbers(result.capfilt.model_dump())})
        for file in (MANIFEST, METRICS, PICTURES):
            run.artifact(Path(out, file))
        if not manifest.samples:
            log.warning(
                "no text of %d images is kept: see the counts in %s", result.counts["images"], Path(out, METRICS)
            )
        return result


def settings(
    context: RunContext, data: str | Path, threshold: str, by: str = "", precision: float | None = None
) -> SelectionConfig:
    """Merges a preset's settings, or those that wrote `data`, with threshold or precision and the overrides.

    Raises ConfigError.
    """
    before = Path(data, MANIFEST)
    if not context.preset and before.is_file():
        base = validate(SelectionConfig, Manifest.load(before).meta.get("selection", {}), f"selection of {before}")
    else:
        base = load_config(SelectionConfig, "select", context.preset or "base")
    values = base.model_dump(mode="json")
    if by and not threshold and precision is None:
        raise ConfigError(f"by {by!r}: name a threshold, too, such as threshold=0.3 or threshold=30%, or a precision")
    if precision is not None:
        values["rule"] = with_precision(values["rule"], precision, threshold, by)
    elif threshold:
        values["rule"] = with_threshold(values["rule"], threshold, by)
    changes: dict[str, Any] = {}
    for override in context.overrides:
        set_value(changes, override)
    return validate(SelectionConfig, merged(values, changes), "select")


def with_threshold(rule: dict[str, Any], text: str, by: str = "") -> dict[str, Any]:
    """Returns a rule with other thresholds: `0.6` for both sources, `web=0.7` for one, `30%` for a share to keep.

    They are of the score `by`, or of p(match); of the weighted sum if the rule is one. Raises ConfigError.
    """
    given = parse_threshold(text)
    if rule["type"] == "weighted" and not by:
        sums = {source: limit.model_dump(include={"least", "share"}) for source, limit in given.items()}
        return {**rule, **sums}
    values = {source: limit.least for source, limit in given.items() if limit.least is not None}
    if not by and len(values) == len(given):
        return with_least_matches(rule, text, values)
    if rule.get("origins"):
        raise ConfigError(
            f"threshold {text!r}: the rule so far has thresholds by collection, which only those of p(match) have; set "
            "the whole rule by rule={type: combined, ...}"
        )
    limits = {source: [limit.model_copy(update={"score": by or limit.score})] for source, limit in given.items()}
    if rule["type"] == "matched":
        before = {source: [Limit(least=rule[source])] for source in SOURCES}
    elif rule["type"] == "combined":
        before = {source: rule[source] for source in SOURCES}
    elif len(given) < len(SOURCES):
        raise no_threshold(rule, text)
    else:
        before = {}
    found = Combined.model_validate({**before, **limits})
    return found.model_dump(mode="json")


def with_precision(rule: dict[str, Any], precision: float, threshold: str, by: str = "") -> dict[str, Any]:
    """Returns a rule that keeps web texts by precision, of the score `by` or p(match), and synthetic ones as before.

    Raises ConfigError.
    """
    if threshold:
        raise ConfigError(f"threshold {threshold!r} and precision {precision:g}: name one of them")
    if not 0 < precision < 1:
        raise ConfigError(f"precision {precision:g}: must be above 0 and below 1, such as 0.9")
    if rule["type"] not in ("matched", "combined") or rule.get("origins"):
        raise ConfigError(
            f"precision {precision:g}: the rule so far has no one threshold of synthetic texts to keep; set the whole "
            f"rule by rule='{{type: combined, web: [{{precision: {precision:g}}}]}}'"
        )
    synthetic = rule["synthetic"] if rule["type"] == "combined" else [Limit(least=rule["synthetic"])]
    limit = Limit(score=by or "match", precision=precision)
    return Combined.model_validate({"web": [limit], "synthetic": synthetic}).model_dump(mode="json")


def with_least_matches(rule: dict[str, Any], text: str, values: dict[str, float]) -> dict[str, Any]:
    """Returns a rule with these least p(match) by source. Raises ConfigError."""
    for value in values.values():
        if not 0 <= value <= 1:
            raise ConfigError(f"threshold {text!r}: {value:g} must be a number from 0 to 1")
    if rule["type"] == "matched":
        return {**rule, **values}
    if len(values) < len(SOURCES):
        raise no_threshold(rule, text)
    return {"type": "matched", **values}


def no_threshold(rule: dict[str, Any], text: str) -> ConfigError:
    """Returns the error for a threshold of one source where the rule has none for the other."""
    return ConfigError(
        f"threshold {text!r}: the rule so far is {rule['type']!r}, which has no thresholds to keep: "
        "name both web and synthetic"
    )


def parse_threshold(text: str) -> dict[str, Limit]:
    """Returns the limits by source of `0.6`, `30%`, or `web=0.7,synthetic=30%`. Raises ConfigError."""
    parts = [part.strip() for part in text.split(",")]
    pairs = [part.partition("=") for part in parts] if "=" in text else [(source, "=", text) for source in SOURCES]
    given: dict[str, Limit] = {}
    for source, _, value in pairs:
        name, share = source.strip(), value.strip().endswith("%")
        if name not in SOURCES or name in given:
            raise ConfigError(
                f"threshold {text!r}: {name!r} must be web or synthetic, and each once; "
                "for example web=0.7,synthetic=0.5"
            )
        try:
            number = float(value.strip().removesuffix("%"))
        except ValueError:
            raise ConfigError(
                f"threshold {text!r} must be a number from 0 to 1, or one for each source: web=0.7,synthetic=0.5, or "
                "a share to keep: 30%"
            ) from None
        if not math.isfinite(number) or (share and not 0 <= number <= 100):
            raise ConfigError(f"threshold {text!r}: {value} must be a number from 0 to 1, or a share from 0% to 100%")
        given[name] = Limit(share=number / 100) if share else Limit(least=number)
    return given


def read_source(data: str | Path) -> ScoresSource:
    """Reads a folder's reference to scores. Raises ConfigError if it has none."""
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
    write_file(folder / SCORES, source.model_dump_json(indent=1) + "\n")


def manifest_name(cfg: CapFiltConfig) -> str:
    """Returns the file name of the web manifest in a data folder."""
    return f"{cfg.source}.json" if is_manifest_name(cfg.source) else "web.json"


def is_manifest_name(source: str) -> bool:
    """Returns whether a source is the name of a manifest rather than a location of tars."""
    return not any(mark in source for mark in "/{.")


def copy_data_folder(data: Path, out: Path, leave_out: Collection[str]) -> None:
    """Copies a data folder's manifests and tokenizer, without the steps' own files and `leave_out`.

    Raises ConfigError if `out` is unusable.
    """
    if out.resolve().is_relative_to(data.resolve()):
        place = "the data folder itself" if out.resolve() == data.resolve() else f"in the data folder {str(data)!r}"
        raise ConfigError(f"out {str(out)!r} is {place}: name another one")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out {str(out)!r} is a file: name a folder")
    own = {*OWN_FILES, *leave_out}
    with output_folder(out) as folder:
        shutil.copytree(data, folder, ignore=lambda top, _: own if Path(top) == data else (), dirs_exist_ok=True)
        for name in own & {path.name for path in out.iterdir() if path.is_file()}:
            (out / name).unlink()  # a stale output of an earlier run
