"""The report of BLIP-2, from what its steps put into the store."""

from pathlib import Path

import pytest
from shapes_data import shapes_data

from blip.report.bootstrap_page import ReportPicture, ScoredText
from blip.report.capfilt_figures import save_pictures
from blip.results import (
    CapFiltResult,
    Change,
    EvaluationResult,
    FeaturesResult,
    FetchResult,
    FrozenResult,
    GateResult,
    IngestResult,
    Kept,
    KeptBySource,
    Noise,
    Result,
    SelectResult,
    TrainResult,
)
from blip.runs.context import RunContext
from blip.runs.outputs import StepOutput
from blip.runs.report_blip2 import Blip2Outputs, report_blip2
from blip.runs.select import PICTURES
from blip.shards.manifest import Manifest
from blip.shards.reading import samples
from pipelines.blip2 import blip2
from pipelines.blip2_capfilt import blip2_capfilt
from pipelines.parameters import steps

ACCURACY = {"opt": 60.0, "opt-alone": 40.0, "t5": 50.0, "t5-alone": 45.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    world = ("data.world.gold=4", "data.world.web=4", "data.world.test=3", "per_shard=3")
    shapes_data(root, world)
    return root


def trained(loss: float) -> TrainResult:
    return TrainResult(
        steps=10,
        losses={"lm": loss},
        curves={"lm": [(1, 2.0), (10, loss)]},
        images_per_second=300.0,
        params={"loader": {"batch": 64}},
        seconds=7.0,
    )


def judged(root: Path, name: str) -> EvaluationResult:
    ids = [sample.id for sample in samples(Manifest.load(root / "data" / "test.json"))]
    scores = {"captioning": {"cider": 100.0, "true": 0.5}, "vqa": {"accuracy": ACCURACY[name], "chance": 35.0}}
    described = dict.fromkeys(ids, f"a caption of {name}")
    return EvaluationResult(split="test", scores=scores, described=described, seconds=3.0)


def publisher(root: Path):
    """Returns a function that publishes a step's output as its component does."""

    def made(stage: str, result: Result, folder: Path | None = None, **inputs: StepOutput) -> StepOutput:
        uris = {role: output.uri for role, output in inputs.items()}
        empty = root / "empty"
        empty.mkdir(exist_ok=True)
        return StepOutput.publish(str(root / "store"), stage, folder or empty, result, uris)

    return made


def decisions(root: Path, features: FeaturesResult) -> dict[str, StepOutput]:
    """Publishes the outputs of all steps of BLIP-2, and returns the two gates' by language model."""
    made = publisher(root)
    data = made("ingest", IngestResult(splits={}, vocabulary=9, seconds=2.0), root / "data")
    frozen = made("frozen", FrozenResult(sources={"opt": "place"}, digests={"opt": "0123abcd"}))
    kept = made("blip2_stage1", features, data=data, frozen=frozen)
    first = made("blip2_stage1", trained(0.5), data=kept, frozen=frozen)
    found = {}
    for kind in ("opt", "t5"):
        joined = made("blip2_stage2", trained(0.9), data=data, frozen=frozen, init=first)
        alone = made("blip2_stage2", trained(1.0), data=data, frozen=frozen)
        after = made("evaluate", judged(root, kind), data=data, model=joined)
        before = made("evaluate", judged(root, f"{kind}-alone"), data=data, model=alone)
        gate = GateResult(registered=True, reason=f"registered {kind}")
        found[kind] = made("register", gate, model=joined, before=before, after=after)
    return found


def decisions_on_selected_texts(root: Path, known: bool) -> dict[str, StepOutput]:
    """The same of BLIP-2 on the texts that CapFilt selected; it is `known` which of them are true, or not."""
    made = publisher(root)
    web = made("ingest", IngestResult(splits={}, vocabulary=9), root / "data")
    models = {
        role: made("fetch-model", FetchResult(source=f"the {role}", task="captioning"))
        for role in ("captioner", "filter")
    }
    scored = made("capfilt", CapFiltResult(images=4, shards=2), data=web, **models)
    counts = {"web": 4, "synthetic": 40, "web.kept": 1, "synthetic.kept": 7}
    noise = Noise(
        web=Change(before=0.5 if known else None, after=1.0 if known else None),
        synthetic=Change(before=0.6 if known else None, after=0.8 if known else None),
    )
    share = Kept(precision=0.8, recall=0.3, kept=0.2)
    kept = KeptBySource(web=share, synthetic=share)
    (root / "kept").mkdir(exist_ok=True)
    texts = [ScoredText(text=text, match=0.9, kept=True, true=True) for text in ("a web text", "a written one")]
    picture = next(samples(Manifest.load(root / "data" / "web.json"))).images[0]
    save_pictures(
        [ReportPicture(key="0", image=picture, web=(texts[0],), synthetic=(texts[1],))], root / "kept" / PICTURES
    )
    selected = SelectResult(noise=noise, capfilt=kept, counts=counts, score="similarity")
    chosen = made("select", selected, root / "kept", scored=scored)
    frozen = made("frozen", FrozenResult(sources={}, digests={}))
    first = {}
    for name, data in (("", chosen), ("-alone", web)):
        features = made("blip2_stage1", FeaturesResult(), data=data, frozen=frozen)
        first[name] = made("blip2_stage1", trained(0.5 + bool(name)), data=features, frozen=frozen)
    found = {}
    for kind in ("opt", "t5"):
        models = {
            name: made("blip2_stage2", trained(0.9), data=data, frozen=frozen, init=first[name])
            for name, data in (("", chosen), ("-alone", web))
        }
        scores = {
            role: made("evaluate", judged(root, f"{kind}{name}"), data=web, model=models[name])
            for role, name in (("after", ""), ("before", "-alone"))
        }
        gate = GateResult(registered=True, reason=f"registered {kind}")
        found[kind] = made("register", gate, model=models[""], **scores)
    return found


@pytest.mark.parametrize("cached", [True, False])
def test_the_page_follows_all_steps_back_from_the_gates_and_says_what_features_saved(root: Path, cached: bool):
    features = FeaturesResult(images=4, images_per_second=600.0) if cached else FeaturesResult()
    outputs = Blip2Outputs.behind(**decisions(root, features))
    assert list(outputs.outputs) == [step.name for step in steps(blip2) if step.name not in ("plan", "report")]
    summary, page = report_blip2(RunContext(store=str(root / "store")), outputs)
    scores = {kind: model.scores for kind, model in summary.models.items()}
    assert {kind: (found.before.accuracy, found.after.accuracy) for kind, found in scores.items()} == {
        "opt": (40.0, 60.0),
        "t5": (45.0, 50.0),
    }
    assert summary.seconds["features"] == 0.0
    saved = "took 640 images from these features, at 300 a second. With the encoder in every step it would take 1.50"
    assert (saved in page) == cached
    assert "opt 0123abcd" in page
    assert "a caption of opt" in page
    assert page.index(">features<") < page.index(">stage1<")
    assert "CapFilt" not in page


def test_a_step_comes_after_those_that_it_reads_and_not_after_what_these_read(root: Path):
    parents = Blip2Outputs.behind(**decisions(root, FeaturesResult())).parents()
    assert parents["ingest"] == parents["frozen"] == ()
    assert set(parents["features"]) == set(parents["stage2-opt-alone"]) == {"ingest", "frozen"}
    assert parents["stage2-t5"] == ("stage1",)
    assert parents["evaluate-t5"] == ("stage2-t5",)
    assert set(parents["register-opt"]) == {"evaluate-opt", "evaluate-opt-alone"}
    parents = Blip2Outputs.behind(**decisions_on_selected_texts(root, known=True)).parents()
    assert set(parents["capfilt"]) == {"captioner", "filter", "ingest"}
    assert parents["select"] == ("capfilt",)
    assert set(parents["features"]) == {"select", "frozen"}
    assert set(parents["features-web"]) == {"ingest", "frozen"}
    assert parents["stage2-opt-web"] == ("stage1-web",)


@pytest.mark.parametrize("known", [True, False])
def test_the_page_of_selected_texts_says_what_was_kept_and_what_it_is_worth(root: Path, known: bool):
    outputs = Blip2Outputs.behind(**decisions_on_selected_texts(root, known))
    wanted = [step.name for step in steps(blip2_capfilt) if step.name not in ("plan", "report")]
    assert sorted(outputs.outputs) == sorted(wanted)
    summary, page = report_blip2(RunContext(store=str(root / "store")), outputs)
    assert summary.lacking == "capfilt"
    assert summary.selected
    share = (1 * 1.0 + 7 * 0.8) / 8
    assert summary.selected.texts == Change(
        before=0.5 if known else None, after=pytest.approx(share) if known else None
    )
    compared = summary.compared()
    assert compared.get("true texts kept") == (pytest.approx(share) if known else None)
    assert (compared["OPT accuracy"], compared["OPT accuracy before"]) == (60.0, 40.0)
    assert "60% of the questions right (40% without CapFilt, 35% by guessing)" in page
    assert "the first stage)" not in page
    assert ("82.5%" in page) == known
    assert page.count("a written one") == 2  # in the gallery of each source
    assert "What is CapFilt worth?" in page
    assert "without CapFilt → with it" in page
