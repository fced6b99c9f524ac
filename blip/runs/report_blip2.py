"""Report of BLIP-2: the results of all its steps on one page."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self, get_args

from blip.datasets.judge import judge_of
from blip.report.blip2_page import Blip2Report, Said, Shown, blip2_html
from blip.report.blip2_summary import LANGUAGE_MODELS, Answered, Blip2Summary, LanguageModelKind, LanguageScores
from blip.report.capfilt_figures import thumbnail
from blip.results import (
    Change,
    EvaluationResult,
    FeaturesResult,
    FrozenResult,
    GateResult,
    IngestResult,
    Point,
    Result,
    TrainResult,
)
from blip.runs.context import RunContext
from blip.runs.evaluate import SHOWN_CAPTIONS
from blip.runs.outputs import StepOutput
from blip.runs.report import facts, gpu_hours_by_step, report_step
from blip.shards.manifest import Manifest
from blip.shards.reading import samples

LANGUAGE_KINDS: tuple[LanguageModelKind, ...] = get_args(LanguageModelKind)
RESULTS: dict[str, type[Result]] = {
    "ingest": IngestResult,
    "frozen": FrozenResult,
    "features": FeaturesResult,
    "stage1": TrainResult,
    **{f"stage2-{kind}{how}": TrainResult for kind in LANGUAGE_KINDS for how in ("", "-alone")},
    **{f"evaluate-{kind}{how}": EvaluationResult for kind in LANGUAGE_KINDS for how in ("", "-alone")},
    **{f"register-{kind}": GateResult for kind in LANGUAGE_KINDS},
}
"""The class of each step's result, by step name, in order."""
PURPOSES = {
    "ingest": "read gold, web and test pairs into shards",
    "frozen": "make or name the frozen models",
    "features": "keep the features that the first stage trains on",
    "stage1": "learn to find in images what texts say",
    "stage2": "let a frozen language model read what is found",
    "evaluate": "describe the test images, answer questions about them",
    "register": "let the better model through",
}
"""The purpose of each kind of step."""


def parents_of(step: str) -> tuple[str, ...]:
    """Returns the steps whose outputs a step reads."""
    verb, _, rest = step.partition("-")
    match verb:
        case "features":
            return "ingest", "frozen"
        case "stage1":
            return ("features",)
        case "stage2":
            return ("ingest", "frozen") if rest.endswith("alone") else ("stage1",)
        case "evaluate":
            return (f"stage2-{rest}",)
        case "register":
            return f"evaluate-{rest}", f"evaluate-{rest}-alone"
        case _:
            return ()


@dataclass(frozen=True)
class Blip2Outputs:
    """The outputs of the steps, by step name."""

    outputs: dict[str, StepOutput]

    @classmethod
    def behind(cls, opt: StepOutput, t5: StepOutput) -> Self:
        """Returns the outputs that led to both decisions: each names those that it was made from."""
        found: dict[str, StepOutput] = {}
        for kind, decision in (("opt", opt), ("t5", t5)):
            before, after, joined = (decision.input(role) for role in ("before", "after", "model"))
            first = joined.input("init")
            found |= {
                f"register-{kind}": decision,
                f"evaluate-{kind}": after,
                f"evaluate-{kind}-alone": before,
                f"stage2-{kind}": joined,
                f"stage2-{kind}-alone": before.input("model"),
                "stage1": first,
                "features": first.input("data"),
                "ingest": joined.input("data"),
                "frozen": joined.input("frozen"),
            }
        return cls(found)

    def results(self) -> dict[str, Result]:
        """Returns the results of all steps, in order. Raises ConfigError."""
        return {name: self.outputs[name].result_of(kind) for name, kind in RESULTS.items()}


def report_blip2(context: RunContext, results: Mapping[str, Result], data: str | Path) -> tuple[Blip2Summary, str]:
    """Returns the summary and the page of a run of BLIP-2; `data` is the data folder that `ingest` wrote."""
    summary = summarise_blip2(results)
    ingested = results["ingest"]
    assert isinstance(ingested, IngestResult)
    made = Blip2Report(
        summary=summary,
        revision=context.revision,
        facts=facts(ingested) | gpu_hours_by_step(results),
        features=features_saved(results),
        gates=tuple(gate.reason for gate in results.values() if isinstance(gate, GateResult)),
        steps=tuple(report_step(name, found, purpose_of(name), parents_of(name)) for name, found in results.items()),
        answers=answers_over_steps(results),
        shown=tuple(shown_images(Path(data), results)),
        bad=left_out(results),
    )
    return summary, blip2_html(made)


def summarise_blip2(results: Mapping[str, Result]) -> Blip2Summary:
    """Returns the summary of a run of BLIP-2."""
    seconds = {name: round(found.seconds, 1) for name, found in results.items()}
    return Blip2Summary(
        models={kind: answered(kind, results) for kind in LANGUAGE_KINDS},
        seconds={**seconds, "total": round(sum(seconds.values()), 1)},
    )


def answered(kind: LanguageModelKind, results: Mapping[str, Result]) -> Answered:
    """Returns the scores of a language model. Raises KeyError if the evaluation left a task out."""
    before, after, gate = (results[name] for name in (f"evaluate-{kind}-alone", f"evaluate-{kind}", f"register-{kind}"))
    assert isinstance(before, EvaluationResult)
    assert isinstance(after, EvaluationResult)
    assert isinstance(gate, GateResult)
    return Answered(
        scores=Change(before=language_scores(before), after=language_scores(after)),
        chance=after.scores["vqa"]["chance"],
        registered=gate.registered,
    )


def language_scores(found: EvaluationResult) -> LanguageScores:
    captions, answers = found.scores["captioning"], found.scores["vqa"]
    of_kind = {name.removeprefix("accuracy_"): value for name, value in answers.items() if name.startswith("accuracy_")}
    return LanguageScores(
        true=captions.get("true"), cider=captions["cider"], accuracy=answers["accuracy"], accuracies=of_kind
    )


def purpose_of(step: str) -> str:
    """Returns what a step is for."""
    return PURPOSES[step.partition("-")[0]] + (", without the first stage" if step.endswith("alone") else "")


def features_saved(results: Mapping[str, Result]) -> str:
    """Returns what kept features saved the first stage, by the speeds that were measured; empty if none were kept."""
    made, trained = results["features"], results["stage1"]
    assert isinstance(made, FeaturesResult)
    assert isinstance(trained, TrainResult)
    if not made.images_per_second or not trained.images_per_second:
        return ""
    encoding, training = made.images_per_second, trained.images_per_second
    seen = trained.steps * trained.params["loader"]["batch"]
    return (
        f"The image encoder read each of {made.images:,} images once, at {encoding:,.0f} a second; the first stage "
        f"took {seen:,} images from these features, at {training:,.0f} a second. With the encoder in every step it "
        f"would take {1 + training / encoding:.2f} times as long."
    )


def answers_over_steps(results: Mapping[str, Result]) -> dict[str, dict[str, list[Point]]]:
    """Returns the share of questions answered right over the steps of each second stage, where it was measured."""
    measured = {
        name: found.scores["accuracy"]
        for name, found in results.items()
        if isinstance(found, TrainResult) and "accuracy" in found.scores
    }
    by_model = {
        LANGUAGE_MODELS[kind]: {
            name: measured[name] for name in (f"stage2-{kind}", f"stage2-{kind}-alone") if name in measured
        }
        for kind in LANGUAGE_KINDS
    }
    return {name: curves for name, curves in by_model.items() if curves}


def shown_images(data: Path, results: Mapping[str, Result]) -> Iterator[Shown]:
    """Yields test images with what each language model said of them, judged if the truth is known."""
    found = {kind: results[f"evaluate-{kind}"] for kind in LANGUAGE_KINDS}
    described = {kind: r.described for kind, r in found.items() if isinstance(r, EvaluationResult)}
    manifest = Manifest.load(data / "test.json")
    judge = judge_of(manifest)
    wanted = (sample for sample in samples(manifest) if all(sample.id in texts for texts in described.values()))
    for sample in islice(wanted, SHOWN_CAPTIONS):
        said = [
            Said(
                by=LANGUAGE_MODELS[kind],
                text=texts[sample.id],
                right=judge(sample.meta, texts[sample.id]) if judge else None,
            )
            for kind, texts in described.items()
        ]
        yield Shown(image=thumbnail(sample.images[0]), reference=sample.texts[0], said=tuple(said))


def left_out(results: Mapping[str, Result]) -> dict[str, dict[str, int]]:
    """Counts samples left out, by place and reason."""
    places: dict[str, dict[str, int]] = {}
    for name, found in results.items():
        match found:
            case IngestResult():
                places |= {f"{split} shards": part.counts for split, part in found.splits.items()}
            case TrainResult() | EvaluationResult():
                places[name] = found.rejected
    return {place: counts for place, counts in places.items() if counts}
