"""The report of BLIP-2, from what its steps put into the store."""

from pathlib import Path

import pytest

from blip.results import (
    EvaluationResult,
    FeaturesResult,
    FrozenResult,
    GateResult,
    IngestResult,
    Result,
    TrainResult,
)
from blip.runs.context import RunContext
from blip.runs.ingest import ingest
from blip.runs.outputs import StepOutput
from blip.runs.report_blip2 import RESULTS, Blip2Outputs, report_blip2
from blip.shards.manifest import Manifest
from blip.shards.reading import samples

ACCURACY = {"opt": 60.0, "opt-alone": 40.0, "t5": 50.0, "t5-alone": 45.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    world = ("data.world.gold=4", "data.world.web=4", "data.world.test=3", "per_shard=3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLIP_TRACKING", "off")
        ingest(RunContext(preset="shapes", overrides=world, store=str(root / "store")), "shapes", out=root / "data")
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


def decisions(root: Path, features: FeaturesResult) -> dict[str, StepOutput]:
    """Publishes the outputs of all steps, as the components do, and returns the two gates' by language model."""

    def made(stage: str, result: Result, **inputs: StepOutput) -> StepOutput:
        uris = {role: output.uri for role, output in inputs.items()}
        folder = root / ("data" if stage == "ingest" else "empty")
        folder.mkdir(exist_ok=True)
        return StepOutput.publish(str(root / "store"), stage, folder, result, uris)

    data = made("ingest", IngestResult(splits={}, vocabulary=9, seconds=2.0))
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


@pytest.mark.parametrize("cached", [True, False])
def test_the_page_follows_all_steps_back_from_the_gates_and_says_what_features_saved(root: Path, cached: bool):
    features = FeaturesResult(images=4, images_per_second=600.0) if cached else FeaturesResult()
    outputs = Blip2Outputs.behind(**decisions(root, features))
    assert set(outputs.outputs) == set(RESULTS)
    with outputs.outputs["ingest"].folder() as data:
        summary, page = report_blip2(RunContext(store=str(root / "store")), outputs.results(), data)
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
