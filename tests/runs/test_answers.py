"""Questions about held-out images that a second stage of BLIP-2 answers while it trains."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shapes_data import shapes_data
from tiny_blip2 import WIDTH, WORDS, blip2_config, clip, opt, t5
from tiny_models import picture, tokenizer

from blip.config import ConfigError, load_config
from blip.models.generation import Beam, Nucleus
from blip.runs.answers import Answers, AnswersConfig
from blip.runs.config import RunConfig
from blip.runs.context import RunContext
from blip.runs.report_blip2 import answers_over_steps
from blip.runs.train import train
from blip.shards.manifest import Manifest
from blip.shards.sample import Sample
from blip.shards.writing import write_shards
from blip.storage import MissingKeyError
from blip.tasks.blip2_stage2 import Blip2Stage2, Blip2Stage2Config
from blip.tasks.blip2_vqa import Blip2VQAConfig
from blip.training.engine import StepReport

SHORT = Blip2VQAConfig(prompt="a {}", decoding=Beam(beams=1, min_length=1, max_length=3))
QUESTIONS = ("red circle", "blue")
WORLD = ("data.world.gold=32", "data.world.web=16", "data.world.test=6", "data.world.questions=3", "per_shard=16")


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_TRACKING", "off")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("answers")
    shapes_data(root, WORLD)
    for name, make in (("clip", clip), ("opt", opt), ("t5", t5)):
        make(root / name)
    return root


def stage2(root: Path) -> Blip2Stage2:
    torch.manual_seed(0)
    cfg = Blip2Stage2Config()
    model = cfg.model_from(blip2_config(str(root / "clip"), str(root / "opt")))
    return cfg.build_task(model, tokenizer()).train()


def asked(number: int, answers: list[str]) -> Sample:
    questions = [
        {"question": question, "answers": [answer] * 10} for question, answer in zip(QUESTIONS, answers, strict=True)
    ]
    return Sample(f"s{number}", [picture(number)], ["a red circle"], {"questions": questions})


def report(step: int = 7, last: bool = False, stop: bool = False) -> StepReport:
    return StepReport(step, last, {}, 0.0, 0.0, 0, 0, stop)


def test_the_share_of_right_answers_is_recorded_and_training_goes_on(root: Path, tmp_path: Path):
    task = stage2(root)
    whole = write_shards([asked(i, ["?", "?"]) for i in range(6)], tmp_path / "unknown", "test")
    hook = Answers(AnswersConfig(every=1, task=SHORT), task, whole, lambda *_: None)
    said = [p.answers for batch in hook.batches for p in hook.asked.eval().predict(batch)]
    assert len(said) == 6
    assert all(answer for row in said for answer in row)

    # of four images that count, the first question of three and the second of one has the answer that is given
    known = [[said[0][0], "no"], [said[1][0], "no"], [said[2][0], said[2][1]], ["no", "no"], said[4], said[5]]
    manifest = write_shards([asked(i, row) for i, row in enumerate(known)], tmp_path / "known", "test")
    recorded = []
    task.train()
    hook = Answers(AnswersConfig(every=1, images=4, task=SHORT), task, manifest, lambda *found: recorded.append(found))
    state = torch.get_rng_state()
    hook(report())
    hook(report(stop=True))
    assert recorded == [(7, {"score/accuracy": pytest.approx(100 * 4 / 8)})]
    assert task.training
    assert task.model.qformer.training
    assert not task.model.language_model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_random_answers_leave_the_numbers_of_training_alone(root: Path, tmp_path: Path):
    manifest = write_shards([asked(0, ["a", "b"])], tmp_path / "one", "test")
    drawing = Blip2VQAConfig(prompt="a {}", decoding=Nucleus(min_length=1, max_length=4))
    hook = Answers(AnswersConfig(every=1, task=drawing), stage2(root), manifest, lambda *_: None)
    state = torch.get_rng_state()
    hook(report())
    assert torch.equal(torch.get_rng_state(), state)


def test_images_without_questions_are_refused(root: Path, tmp_path: Path):
    bare = write_shards([Sample("s", [picture(0)], ["a red circle"], {})], tmp_path / "bare", "test")
    with pytest.raises(ConfigError, match=r"answers.split is test, but none of its first 200 images has questions"):
        Answers(AnswersConfig(every=1), stage2(root), bare, lambda *_: None)


def context(root: Path, kind: str, store: str, *more: str) -> RunContext:
    settings = (
        "steps=5",
        "sources=[gold]",
        f"model.vision={{source: {root / 'clip'}, size: 32, width: {WIDTH}}}",
        f"model.language_model={{source: {root / kind}, width: {WORDS}}}",
        "model.text={width: 16, depth: 2, heads: 2, feed_forward: 32, positions: 48}",
        "model.queries=4",
        "transform={size: 32, min_scale: 1.0, flip: false, augment: none}",
        "loader={batch: 16, streams: 4}",
        "schedule={warmup_steps: 2}",
        "task.text.tokens=40",
        "task.decoding={type: beam, beams: 1, min_length: 1, max_length: 5}",
        *more,
    )
    return RunContext(preset="base", overrides=settings, store=str(root / store))


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_a_training_answers_on_its_way_and_learns_the_same(root: Path, kind: str):
    answering = "answers={every: 2, images: 4, task: {decoding: {type: beam, beams: 1, min_length: 1, max_length: 3}}}"
    asked = train(context(root, kind, "asked", answering), "blip2_stage2", data=root / "data", out=root / f"{kind}-1")
    plain = train(context(root, kind, "plain"), "blip2_stage2", data=root / "data", out=root / f"{kind}-2")
    assert [step for step, _ in asked.scores["accuracy"]] == [2, 4, 5]
    assert plain.scores == {}
    assert asked.losses == plain.losses
    first, second = (load_file(root / f"{kind}-{number}" / "model.safetensors") for number in (1, 2))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    name = {"opt": "OPT", "t5": "T5"}[kind]
    measured = answers_over_steps({f"stage2-{kind}": asked, f"stage2-{kind}-alone": plain}, "stage1")
    assert measured == {name: {f"stage2-{kind}": asked.scores["accuracy"]}}


@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        ("blip2_stage1", "answers={every: 5}", "task.type is blip2_stage1, and only blip2_stage2 answers questions"),
        ("pretrain", "answers={every: 5}", "task.type is pretraining, and only blip2_stage2 answers questions"),
        ("blip2_stage2", "answers={every: 0}", "answers.every"),
        ("blip2_stage2", "answers={every: 5, task: {ask_qformer: true}}", "answers.task.ask_qformer is true"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(stage: str, settings: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_config(RunConfig, stage, "base", [settings])


def test_features_cannot_be_asked_about():
    more = ["answers={every: 5}", "task.features=true", "transform={min_scale: 1.0, flip: false, augment: none}"]
    with pytest.raises(ConfigError, match=r"answers has a value, but task.features is true"):
        load_config(RunConfig, "blip2_stage2", "base", more)


def test_a_training_is_known_without_its_answers(root: Path):
    more = ("answers={every: 5, task: {decoding: {type: beam, beams: 1, min_length: 1, max_length: 3}}}", "steps=1")
    for settings in (more, more[1:]):
        train(context(root, "opt", "once", *settings), "blip2_stage2", data=root / "data", out=root / "once-model")
    assert len(list((root / "once" / "blip2_stage2").iterdir())) == 1, "the second one found that of the first"


def test_the_split_is_one_of_the_data(root: Path):
    with pytest.raises(MissingKeyError, match=r"val.json does not exist"):
        train(
            context(root, "opt", "store", "answers={every: 5, split: val}"),
            "blip2_stage2",
            data=root / "data",
            out=root / "none",
        )
    assert Manifest.load(root / "data" / "test.json").samples == 6
