"""Report: the results of all steps of a bootstrap on one page."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Self, TypeVar, get_type_hints

from blip.config import Config
from blip.datasets.judge import judge_of
from blip.report.bootstrap_page import BootstrapReport, Described, ReportStep, bootstrap_html, selection
from blip.report.capfilt_figures import load_pictures, thumbnail
from blip.report.summary import CaptionScores, RetrievalScores, Summary
from blip.results import (
    CapFiltResult,
    Change,
    EvaluationResult,
    FrozenResult,
    GateResult,
    IngestResult,
    Result,
    SelectResult,
    TrainResult,
)
from blip.runs.context import RunContext
from blip.runs.evaluate import SHOWN_CAPTIONS
from blip.runs.outputs import StepOutput
from blip.runs.select import PICTURES
from blip.shards.manifest import Manifest
from blip.shards.reading import samples

R = TypeVar("R", bound=Config)

STEP_PURPOSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ingest": ("read gold, web and test pairs into shards", ()),
    "pretrain": ("learn on web and gold", ("ingest",)),
    "captioner": ("learn to describe", ("pretrain",)),
    "filter": ("learn to tell what matches", ("pretrain",)),
    "capfilt": ("caption the web, score what matches", ("captioner", "filter")),
    "select": ("keep what matches", ("capfilt",)),
    "pretrain-again": ("learn from scratch on what was kept", ("select",)),
    "evaluate-before": ("evaluate the first model", ("pretrain",)),
    "evaluate-after": ("evaluate the second model", ("pretrain-again",)),
    "register": ("let the better model through", ("evaluate-before", "evaluate-after")),
}
"""The purpose of each step, and the steps whose outputs it reads."""


@dataclass(frozen=True)
class BootstrapResults:
    """The results of a bootstrap's steps."""

    ingest: IngestResult
    pretrain: TrainResult
    captioner: TrainResult
    filter: TrainResult
    capfilt: CapFiltResult
    select: SelectResult
    pretrain_again: TrainResult
    evaluate_before: EvaluationResult
    evaluate_after: EvaluationResult
    register: GateResult

    def steps(self) -> dict[str, Result]:
        """Returns the results by step name."""
        return {name: getattr(self, attribute(name)) for name in STEP_PURPOSES}


@dataclass(frozen=True)
class BootstrapOutputs:
    """The outputs of a bootstrap's steps."""

    ingest: StepOutput
    pretrain: StepOutput
    captioner: StepOutput
    filter: StepOutput
    capfilt: StepOutput
    select: StepOutput
    pretrain_again: StepOutput
    evaluate_before: StepOutput
    evaluate_after: StepOutput
    register: StepOutput

    @classmethod
    def behind(cls, decision: StepOutput) -> Self:
        """Returns the outputs that led to a decision of the gate: each names those that it was made from."""
        before, after, final = (decision.input(role) for role in ("before", "after", "model"))
        kept = final.input("data")
        scored = kept.input("scored")
        return cls(
            ingest=before.input("data"),
            pretrain=before.input("model"),
            captioner=scored.input("captioner"),
            filter=scored.input("filter"),
            capfilt=scored,
            select=kept,
            pretrain_again=final,
            evaluate_before=before,
            evaluate_after=after,
            register=decision,
        )

    def results(self) -> BootstrapResults:
        """Returns the results of all steps. Raises ConfigError."""
        kinds = get_type_hints(BootstrapResults)
        outputs = {field.name: getattr(self, field.name) for field in fields(self)}
        return BootstrapResults(**{name: output.result_of(kinds[name]) for name, output in outputs.items()})


def attribute(step: str) -> str:
    """`pretrain_again` of `pretrain-again`."""
    return step.replace("-", "_")


def report(context: RunContext, results: BootstrapResults, *, kept: str | Path) -> tuple[Summary, str]:
    """Returns the summary and the page of a bootstrap; `kept` is the data folder that `select` wrote."""
    result = summarise(results)
    made = BootstrapReport(
        summary=result,
        revision=context.revision,
        facts=facts(results.ingest) | gpu_hours_by_step(results.steps()),
        gate=results.register.reason,
        steps=tuple(report_step(name, found, *STEP_PURPOSES[name]) for name, found in results.steps().items()),
        selection=selection(results.select, load_pictures(Path(kept, PICTURES))),
        described=captioned_images(Path(kept), results.evaluate_before.described, results.evaluate_after.described),
        bad=left_out(results),
    )
    return result, bootstrap_html(made)


def summarise(results: BootstrapResults) -> Summary:
    """Returns the summary of a bootstrap."""
    before, after = results.evaluate_before, results.evaluate_after
    seconds = {name: round(found.seconds, 1) for name, found in results.steps().items()}
    return Summary(
        noise=results.select.noise,
        capfilt=results.select.capfilt,
        retrieval=changed(retrieval_figures, "retrieval", before, after),
        caption=changed(caption_figures, "captioning", before, after),
        seconds={**seconds, "total": round(sum(seconds.values()), 1)},
        registered=results.register.registered,
    )


def changed(
    read: Callable[[Mapping[str, float]], R], task: str, before: EvaluationResult, after: EvaluationResult
) -> Change[R] | None:
    """Returns a task's scores of both models; None if an evaluation has none of the task."""
    if not before.scores.get(task) or not after.scores.get(task):
        return None
    return Change(before=read(before.scores[task]), after=read(after.scores[task]))


def retrieval_figures(scores: Mapping[str, float]) -> RetrievalScores:
    return RetrievalScores(**{name: scores[name] for name in RetrievalScores.model_fields})


def caption_figures(scores: Mapping[str, float]) -> CaptionScores:
    return CaptionScores(true=scores.get("true"), cider=scores["cider"], bleu4=scores["bleu4"])


def facts(ingested: IngestResult) -> dict[str, str]:
    """Returns the size of each split, shown under the report's headline."""
    return {split: f"{found.samples:,} images in {found.shards} shards" for split, found in ingested.splits.items()}


def gpu_hours_by_step(results: Mapping[str, Result]) -> dict[str, str]:
    """Returns the GPU hours of the run and of each step, if any step used GPUs."""
    hours = {name: found.gpu_hours for name, found in results.items() if found.gpu_hours}
    shares = ", ".join(f"{name} {spent:.2f}" for name, spent in hours.items())
    return {"GPU hours": f"{sum(hours.values()):.2f} ({shares})"} if hours else {}


def report_step(name: str, found: Result, purpose: str, parents: tuple[str, ...]) -> ReportStep:
    """Returns a step as a report shows it."""
    trained = found if isinstance(found, TrainResult) else None
    made = found if isinstance(found, FrozenResult) else None
    return ReportStep(
        name=name,
        purpose=purpose,
        parents=parents,
        seconds=found.seconds,
        curves=trained.curves if trained else {},
        params=trained.params if trained else dict(made.sources) if made else {},
        alarms=tuple(map(str, trained.alarms)) if trained else (),
        digest=", ".join(f"{name} {digest}" for name, digest in made.digests.items()) if made else made_of(found),
        mlflow=found.mlflow,
    )


def made_of(found: Result) -> str:
    """Returns the digest of a step's model or manifest; for ingestion that of each split."""
    if isinstance(found, IngestResult):
        return ", ".join(f"{split} {part.digest}" for split, part in found.splits.items())
    return found.digest


def captioned_images(data: Path, before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Described, ...]:
    """Returns test images with a human caption and both models' captions, evaluated if the truth is known."""
    found = []
    manifest = Manifest.load(data / "test.json")
    judge = judge_of(manifest)
    both = (sample for sample in samples(manifest) if sample.id in before and sample.id in after)
    for sample in islice(both, SHOWN_CAPTIONS):
        old, new = before[sample.id], after[sample.id]
        truth = {"before_true": judge(sample.meta, old), "after_true": judge(sample.meta, new)} if judge else {}
        found.append(
            Described(image=thumbnail(sample.images[0]), reference=sample.texts[0], before=old, after=new, **truth)
        )
    return tuple(found)


def left_out(results: BootstrapResults) -> dict[str, dict[str, int]]:
    """Counts samples and texts left out, by place and reason."""
    places = {f"{split} shards": found.counts for split, found in results.ingest.splits.items()}
    places |= {
        name: found.rejected
        for name, found in results.steps().items()
        if isinstance(found, TrainResult | EvaluationResult)
    }
    places["CapFilt"] = results.select.counts
    return {place: counts for place, counts in places.items() if counts}
