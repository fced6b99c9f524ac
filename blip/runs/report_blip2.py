"""Report of BLIP-2: the results of all its steps on one page."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self, get_args

from blip.datasets.judge import judge_of
from blip.report.blip2_page import Blip2Report, Said, Shown, blip2_html
from blip.report.blip2_summary import (
    LANGUAGE_MODELS,
    Answered,
    Blip2Summary,
    Lacking,
    LanguageModelKind,
    LanguageScores,
    Selected,
)
from blip.report.bootstrap_page import Selection, selection
from blip.report.capfilt_figures import load_pictures, thumbnail
from blip.results import (
    SOURCES,
    CapFiltResult,
    Change,
    EvaluationResult,
    FeaturesResult,
    FetchResult,
    FrozenResult,
    GateResult,
    IngestResult,
    Point,
    Result,
    SelectResult,
    TrainResult,
)
from blip.runs.context import RunContext
from blip.runs.evaluate import SHOWN_CAPTIONS
from blip.runs.outputs import StepOutput
from blip.runs.report import facts, gpu_hours_by_step, report_step
from blip.runs.select import PICTURES
from blip.shards.manifest import Manifest
from blip.shards.reading import samples

LANGUAGE_KINDS: tuple[LanguageModelKind, ...] = get_args(LanguageModelKind)
STEPS: dict[str, tuple[type[Result], str]] = {
    "captioner": (FetchResult, "copy the model that writes captions"),
    "filter": (FetchResult, "copy the model that scores how well texts match"),
    "ingest": (IngestResult, "read gold, web and test pairs into shards"),
    "capfilt": (CapFiltResult, "caption the web, score all texts"),
    "select": (SelectResult, "keep the texts most similar to their image"),
    "frozen": (FrozenResult, "make or name the frozen models"),
    "features": (FeaturesResult, "keep the features that the first stage trains on"),
    "stage1": (TrainResult, "learn to find in images what texts say"),
    "stage2": (TrainResult, "let a frozen language model read what is found"),
    "evaluate": (EvaluationResult, "describe the test images, answer questions about them"),
    "register": (GateResult, "let the better model through"),
}
"""The class of the result, and the purpose, of each kind of step, in order; a step's name begins with its kind."""
ENDS: dict[Lacking, str] = {"stage1": "-alone", "capfilt": "-web"}
"""The end of the names of steps that lead to the models to compare with, by what these do without."""
WITHOUT = {"-alone": ", without the first stage", "-web": ", on the web's texts as they are"}


def kind_of(step: str) -> str:
    """`stage2` of `stage2-opt-alone`."""
    return step.partition("-")[0]


@dataclass(frozen=True)
class Blip2Outputs:
    """The outputs of the steps, by step name, in order."""

    lacking: Lacking
    outputs: dict[str, StepOutput]

    @classmethod
    def behind(cls, opt: StepOutput, t5: StepOutput) -> Self:
        """Returns the outputs that led to both decisions: each names those that it was made from."""
        found: dict[str, StepOutput] = {}
        data = opt.input("model").input("data")
        lacking: Lacking = "capfilt" if "scored" in data.inputs else "stage1"
        end = ENDS[lacking]
        for kind, decision in (("opt", opt), ("t5", t5)):
            before, after, joined = (decision.input(role) for role in ("before", "after", "model"))
            other, first = before.input("model"), joined.input("init")
            found |= {
                f"register-{kind}": decision,
                f"evaluate-{kind}": after,
                f"evaluate-{kind}{end}": before,
                f"stage2-{kind}": joined,
                f"stage2-{kind}{end}": other,
                "stage1": first,
                "features": first.input("data"),
                "ingest": other.input("data"),
                "frozen": joined.input("frozen"),
            }
            if lacking == "capfilt":
                scored, first = data.input("scored"), other.input("init")
                found |= {"select": data, "capfilt": scored}
                found |= {role: scored.input(role) for role in ("captioner", "filter")}
                found |= {f"stage1{end}": first, f"features{end}": first.input("data")}
        kinds = list(STEPS)
        return cls(lacking, dict(sorted(found.items(), key=lambda step: kinds.index(kind_of(step[0])))))

    def results(self) -> dict[str, Result]:
        """Returns the results of all steps, in order. Raises ConfigError."""
        return {name: output.result_of(STEPS[kind_of(name)][0]) for name, output in self.outputs.items()}

    def parents(self) -> dict[str, tuple[str, ...]]:
        """Returns the steps whose outputs each step reads, without those that one of these reads, too."""
        names = {output.uri: name for name, output in self.outputs.items()}
        read = {
            name: {names[uri] for uri in output.inputs.values() if uri in names}
            for name, output in self.outputs.items()
        }
        before: dict[str, set[str]] = {}
        for name in self.outputs:  # in order, so that what a step reads is known before it
            before[name] = read[name].union(*(before[parent] for parent in read[name]))
        return {
            name: tuple(p for p in self.outputs if p in parents and not any(p in before[other] for other in parents))
            for name, parents in read.items()
        }


def report_blip2(context: RunContext, outputs: Blip2Outputs) -> tuple[Blip2Summary, str]:
    """Returns the summary and the page of a run of BLIP-2. Raises ConfigError."""
    results, parents = outputs.results(), outputs.parents()
    summary = summarise_blip2(results, outputs.lacking)
    ingested = results["ingest"]
    assert isinstance(ingested, IngestResult)
    with outputs.outputs["ingest"].folder() as data:
        shown = tuple(shown_images(data, results))
    made = Blip2Report(
        summary=summary,
        title="BLIP-2" if outputs.lacking == "stage1" else "BLIP-2 on CapFilt's texts",
        revision=context.revision,
        facts=facts(ingested) | gpu_hours_by_step(results),
        features=features_saved(results),
        gates=tuple(gate.reason for gate in results.values() if isinstance(gate, GateResult)),
        steps=tuple(report_step(name, found, purpose_of(name), parents[name]) for name, found in results.items()),
        answers=answers_over_steps(results, outputs.lacking),
        selection=shown_selection(outputs, results),
        shown=shown,
        bad=left_out(results),
    )
    return summary, blip2_html(made)


def summarise_blip2(results: Mapping[str, Result], lacking: Lacking) -> Blip2Summary:
    """Returns the summary of a run of BLIP-2."""
    seconds = {name: round(found.seconds, 1) for name, found in results.items()}
    chosen = results.get("select")
    return Blip2Summary(
        lacking=lacking,
        models={kind: answered(kind, results, ENDS[lacking]) for kind in LANGUAGE_KINDS},
        selected=selected(chosen) if isinstance(chosen, SelectResult) else None,
        seconds={**seconds, "total": round(sum(seconds.values()), 1)},
    )


def selected(found: SelectResult) -> Selected:
    """Returns what a selection kept, and the share of true texts before and after."""
    number = {source: found.counts.get(f"{source}.kept", 0) for source in SOURCES}
    shares = {source: getattr(found.noise, source).after for source in SOURCES if number[source]}
    known = bool(shares) and None not in shares.values()
    after = sum(number[source] * share for source, share in shares.items()) / sum(number.values()) if known else None
    return Selected(noise=found.noise, kept=found.capfilt, texts=Change(before=found.noise.web.before, after=after))


def shown_selection(outputs: Blip2Outputs, results: Mapping[str, Result]) -> Selection:
    """Returns what the page shows of CapFilt; nothing where it is no part of the pipeline."""
    chosen = results.get("select")
    if not isinstance(chosen, SelectResult):
        return Selection()
    with outputs.outputs["select"].folder() as kept:
        return selection(chosen, load_pictures(kept / PICTURES))


def answered(kind: LanguageModelKind, results: Mapping[str, Result], end: str) -> Answered:
    """Returns the scores of a language model."""
    before, after, gate = (results[name] for name in (f"evaluate-{kind}{end}", f"evaluate-{kind}", f"register-{kind}"))
    assert isinstance(before, EvaluationResult)
    assert isinstance(after, EvaluationResult)
    assert isinstance(gate, GateResult)
    return Answered(
        scores=Change(before=language_scores(before), after=language_scores(after)),
        chance=after.scores.get("vqa", {}).get("chance"),
        registered=gate.registered,
    )


def language_scores(found: EvaluationResult) -> LanguageScores:
    captions, answers = found.scores.get("captioning", {}), found.scores.get("vqa", {})
    of_kind = {name.removeprefix("accuracy_"): value for name, value in answers.items() if name.startswith("accuracy_")}
    return LanguageScores(
        true=captions.get("true"), cider=captions.get("cider"), accuracy=answers.get("accuracy"), accuracies=of_kind
    )


def purpose_of(step: str) -> str:
    """Returns what a step is for."""
    end = next((words for end, words in WITHOUT.items() if step.endswith(end)), "")
    return STEPS[kind_of(step)][1] + end


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


def answers_over_steps(results: Mapping[str, Result], lacking: Lacking) -> dict[str, dict[str, list[Point]]]:
    """Returns the share of questions answered right over the steps of each second stage, where it was measured."""
    measured = {
        name: found.scores["accuracy"]
        for name, found in results.items()
        if isinstance(found, TrainResult) and "accuracy" in found.scores
    }
    by_model = {
        LANGUAGE_MODELS[kind]: {
            name: measured[name] for name in (f"stage2-{kind}", f"stage2-{kind}{ENDS[lacking]}") if name in measured
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
            case SelectResult():
                places["CapFilt"] = found.counts
    return {place: counts for place, counts in places.items() if counts}
