"""Report: the figures of a whole bootstrap, gathered from its steps, on one page."""

import json
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from blip.config import Config
from blip.data.judge import judge_of
from blip.data.manifest import Manifest
from blip.data.shards import samples
from blip.report.bootstrap_page import Described, Report, Scores, Step, galleries, html, markdown
from blip.report.capfilt_figures import load_pictures, thumbnail
from blip.report.summary import Caption, Change, Retrieval, Summary
from blip.runs.evaluate import DESCRIBED
from blip.runs.select import PICTURES

C = TypeVar("C", bound=Config)

STEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ingest": ("read gold, web and test pairs into shards", ()),
    "pretrain": ("learn on web and gold", ("ingest",)),
    "captioner": ("learn to describe", ("pretrain",)),
    "filter": ("learn to tell what matches", ("pretrain",)),
    "capfilt": ("caption the web, score what matches", ("captioner", "filter")),
    "select": ("keep what matches", ("capfilt",)),
    "pretrain-again": ("learn from scratch on what was kept", ("select",)),
    "evaluate-before": ("judge the first model", ("pretrain",)),
    "evaluate-after": ("judge the second model", ("pretrain-again",)),
    "register": ("let the better model through", ("evaluate-before", "evaluate-after")),
}
"""What each step is for, and whose outputs it read."""


def report(figures: Mapping[str, str], kept: str, page: str, card: str, summary: str, revision: str) -> Summary:
    """Writes the page, its short form in Markdown and `summary.json` from each step's figures and the data folder that `select` made."""
    found = {step: json.loads(Path(path).read_text()) for step, path in figures.items()}
    result = summarise(found)
    result.save(summary)
    pictures = load_pictures(Path(kept, PICTURES))
    clean = found["select"]
    made = Report(
        summary=result,
        revision=revision,
        facts=facts(found["ingest"]) | cost(found),
        gate=found["register"]["gate"],
        steps=tuple(step(name, found[name]) for name in STEPS),
        threshold=clean["threshold"],
        scores=tuple(Scores(**counts) for counts in clean["scores"].values()),
        galleries=galleries(pictures, "web") + galleries(pictures, "synthetic"),
        described=described(kept, found["evaluate-before"]["described"], found["evaluate-after"]["described"]),
        bad=left_out(found),
    )
    Path(page).write_text(html(made))
    Path(card).write_text(markdown(made))
    return result


def summarise(found: Mapping[str, Any]) -> Summary:
    """The figures of all steps as one record."""
    before, after, clean = found["evaluate-before"], found["evaluate-after"], found["select"]
    seconds = {name: round(values["seconds"], 1) for name, values in found.items()}
    return Summary.model_validate(
        {
            "noise": clean["noise"],
            "capfilt": clean["capfilt"],
            "retrieval": change(retrieval, "retrieval", before, after),
            "caption": change(caption, "captioning", before, after),
            "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
            "registered": found["register"]["registered"],
        }
    )


def change(read: Callable[[Mapping[str, float]], C], task: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Change[C] | None:
    """A task's scores of both models; None where an evaluation left the task out."""
    if task not in before or task not in after:
        return None
    return Change(before=read(before[task]), after=read(after[task]))


def retrieval(scores: Mapping[str, float]) -> Retrieval:
    return Retrieval(**{name: scores[name] for name in Retrieval.model_fields})


def caption(scores: Mapping[str, float]) -> Caption:
    return Caption(true=scores.get("true"), cider=scores["cider"], bleu4=scores["bleu4"])


def facts(ingested: Mapping[str, Any]) -> dict[str, str]:
    splits = {split: values for split, values in ingested.items() if isinstance(values, Mapping) and "samples" in values}
    return {split: f"{values['samples']:,} images in {values['shards']} shards" for split, values in splits.items()}


def cost(found: Mapping[str, Any]) -> dict[str, str]:
    """GPU hours of the run and of each step, where there were GPUs."""
    hours = {name: values["gpu_hours"] for name, values in found.items() if values.get("gpu_hours")}
    shares = ", ".join(f"{name} {spent:.2f}" for name, spent in hours.items())
    return {"GPU hours": f"{sum(hours.values()):.2f} ({shares})"} if hours else {}


def step(name: str, figures: Mapping[str, Any]) -> Step:
    purpose, parents = STEPS[name]
    alarms = tuple(f"{alarm['name']} at step {alarm['step']}" for alarm in figures.get("alarms", ()))
    return Step(
        name=name,
        purpose=purpose,
        parents=parents,
        seconds=figures["seconds"],
        curves=figures.get("curves", {}),
        params=figures.get("params", {}),
        alarms=alarms,
        digest=made(figures),
        mlflow=figures.get("mlflow", ""),
    )


def made(figures: Mapping[str, Any]) -> str:
    """The digest of the model or the manifest that a step made, or of the manifest of each split."""
    splits = {split: values["digest"] for split, values in figures.items() if isinstance(values, Mapping) and "digest" in values}
    return ", ".join(f"{split} {digest}" for split, digest in splits.items()) or figures.get("digest", "")


def described(data: str, before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Described, ...]:
    """Test images with a person's caption and both models', judged where the truth is known."""
    found = []
    manifest = Manifest.load(Path(data, "test.json"))
    judge = judge_of(manifest)
    both = (sample for sample in samples(manifest) if sample.id in before and sample.id in after)
    for sample in islice(both, DESCRIBED):
        old, new = before[sample.id], after[sample.id]
        judged = {"before_true": judge(sample.meta, old), "after_true": judge(sample.meta, new)} if judge else {}
        found.append(Described(image=thumbnail(sample.images[0]), reference=sample.texts[0], before=old, after=new, **judged))
    return tuple(found)


def left_out(found: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Samples and texts that were not used, by place and reason."""
    places = {f"{split} shards": values.get("counts", {}) for split, values in found["ingest"].items() if isinstance(values, Mapping)}
    places |= {name: values["rejected"] for name, values in found.items() if "rejected" in values and name != "capfilt"}
    places["CapFilt"] = found["select"]["counts"]
    return {place: counts for place, counts in places.items() if counts}
