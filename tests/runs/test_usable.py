"""Evaluation and training of data that have nothing for them end before any model runs."""

from pathlib import Path

import pytest
from tiny_models import both, captioner, model_folder, picture, tokenizer

from blip.config import ConfigError, load_config
from blip.evaluation.job import EvaluateConfig
from blip.models.blip2 import Blip2Config
from blip.runs import evaluate as verb
from blip.runs import train as training
from blip.runs.config import RunConfig
from blip.runs.context import RunContext
from blip.runs.evaluate import evaluate
from blip.runs.train import train
from blip.runs.usable import check_sources, without_unscored
from blip.shards.manifest import Manifest
from blip.shards.sample import Sample
from blip.shards.writing import write_shards
from blip.storage.s3 import S3Store

CAPTIONED = {"texts": ["a red disc"]}
MUTE = {"texts": []}


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_TRACKING", "off")


def split(folder: Path, *samples: dict, name: str = "test") -> Manifest:
    """Writes images with these texts and metadata as a split of `folder`, two to a shard."""
    (folder / "data").mkdir(exist_ok=True)
    found = [Sample(f"{i}", [picture(i)], sample["texts"], sample.get("meta", {})) for i, sample in enumerate(samples)]
    manifest = write_shards(found, folder / "shards", name, 2)
    manifest.save(folder / "data" / f"{name}.json")
    return manifest


@pytest.mark.parametrize(
    ("task", "sample", "said", "serves"),
    [
        ("retrieval", MUTE, r"a text: 3 \(empty text\)", ""),
        ("captioning", MUTE, r"a caption, or the `image_id` in its json", ""),
        ("vqa", CAPTIONED, r"a question with `answers` or `correct_choice` .*: 3 \(no answers\)", "captioning"),
        ("nlvr", CAPTIONED, r"two images and a statement .*: 3 \(not two images\)", "retrieval"),
        ("dialog", CAPTIONED, r"`rounds` in its json, one with `options`: 3 \(rounds that are no dialog\)", "retr"),
        (
            "dialog",
            {"texts": ["a disc"], "meta": {"rounds": [{"question": "is it red?", "answer": "yes"}]}},
            r"`rounds` in its json, one with `options`: 3 \(no round with candidates\)",
            "captioning",
        ),
        ("video_retrieval", MUTE, "a text", ""),
        ("video_qa", CAPTIONED, "a question with `answers`", "video_retrieval"),
    ],
)
def test_a_split_without_anything_to_score_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, sample: dict, said: str, serves: str
):
    split(tmp_path, *[sample] * 3)
    monkeypatch.setattr(verb, "load_tasks", lambda *_: pytest.fail("a model was loaded"))
    model = model_folder(captioner(), tmp_path / "model")
    context = RunContext(preset="shapes", overrides=(f"tasks=[{task}]",), store=str(tmp_path / "store"))
    with pytest.raises(
        ConfigError, match=rf"^nothing to score: {task}: none of the 3 samples of split test has {said}"
    ) as error:
        evaluate(context, data=tmp_path / "data", model=model, out=tmp_path / "out")
    assert ("this one has some for" in str(error.value)) == bool(serves)
    assert serves in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("task", "sample"), [("retrieval", MUTE), ("captioning", MUTE), ("vqa", CAPTIONED)])
def test_so_it_is_for_a_blip2(tmp_path: Path, task: str, sample: dict):
    cfg = EvaluateConfig(tasks=(task,)).fitted(Blip2Config())
    with pytest.raises(ConfigError, match=f"nothing to score: {task}: none of the 3 samples"):
        without_unscored(cfg, split(tmp_path, *[sample] * 3))
    asked = {"texts": ["a disc"], "meta": {"questions": [{"question": "is it red?", "answers": ["yes"]}]}}
    manifest = split(tmp_path, sample, asked)
    assert without_unscored(cfg, manifest) == (cfg, {})


def test_an_empty_split_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none of the 0 samples of split test has a text: nothing"):
        without_unscored(EvaluateConfig(tasks=("retrieval",)), split(tmp_path))


def test_only_the_samples_within_the_limit_count(tmp_path: Path):
    manifest = split(tmp_path, MUTE, MUTE, MUTE, CAPTIONED)
    limited = EvaluateConfig.model_validate({"tasks": ("retrieval",), "evaluation": {"limit": 3}})
    with pytest.raises(ConfigError, match="none of the 3 samples"):
        without_unscored(limited, manifest)
    assert without_unscored(EvaluateConfig(tasks=("retrieval",)), manifest)[1] == {}


def test_of_several_tasks_those_without_anything_are_left_out_with_the_reason(tmp_path: Path):
    split(tmp_path, *[CAPTIONED] * 4)
    model = model_folder(both(), tmp_path / "model")
    settings = ("tasks=[captioning,vqa]", "captioning.text.tokens=12", "workers=1")
    context = RunContext(preset="shapes", overrides=settings, store=str(tmp_path / "store"))
    result = evaluate(context, data=tmp_path / "data", model=model, out=tmp_path / "out")
    assert set(result.scores) == {"captioning"}
    assert list(result.not_scored) == ["vqa"]
    assert "none of the 4 samples of split test has a question with `answers`" in result.not_scored["vqa"]


def test_what_only_a_server_can_score_is_no_error(tmp_path: Path):
    asked = {"texts": ["is it red?"], "meta": {"question_id": 7}}
    choices = {"texts": ["is it red?"], "meta": {"question_id": 7, "choices": ["yes", "no"]}}
    for sample in (asked, choices):
        cfg = EvaluateConfig(tasks=("vqa", "video_qa"))
        assert without_unscored(cfg, split(tmp_path, sample)) == (cfg, {})


@pytest.mark.parametrize(
    ("stage", "source", "sample", "said"),
    [
        ("pretrain", "web", MUTE, r"a text, from which pretraining learns: 3 \(empty text\)"),
        ("captioner", "gold", MUTE, "a text, from which captioning learns"),
        ("filter", "gold", MUTE, "a text, from which retrieval learns"),
        ("vqa", "train", CAPTIONED, r"a question with `answers` in its json, .*: 3 \(no answers\)"),
        ("nlvr", "train", CAPTIONED, "two images and a statement with its `label`"),
        ("dialog", "train", CAPTIONED, "`rounds` in its json, one with `options` and the position `correct`"),
    ],
)
def test_data_that_a_stage_learns_nothing_from_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, source: str, sample: dict, said: str
):
    for name in ("gold", "train", "web"):
        split(tmp_path, *([sample] * 3 if name == source else [CAPTIONED]), name=name)
    tokenizer().save(tmp_path / "data" / "tokenizer")
    monkeypatch.setattr(training, "make_task", lambda *_: pytest.fail("a model was built"))
    context = RunContext(preset="shapes", store=str(tmp_path / "store"))
    with pytest.raises(ConfigError, match=f"^nothing to train on: none of the 3 samples of .*{source}.json has {said}"):
        train(context, stage, data=tmp_path / "data", out=tmp_path / "out", processes=1)
    assert not (tmp_path / "out").exists()


def test_blip2_learns_from_questions_with_answers(tmp_path: Path):
    split(tmp_path, *[CAPTIONED] * 2, name="train")
    cfg = load_config(RunConfig, "blip2_vqa", "small", ())
    with pytest.raises(ConfigError, match="a question with `answers` in its json, or `questions` that have them"):
        check_sources(cfg, tmp_path / "data")


def test_a_task_none_of_whose_samples_can_be_read_leaves_the_others_theirs(tmp_path: Path):
    named = [Sample(f"{i}", [picture(i)], [], {"image_id": i}) for i in range(2)]
    cut = Sample("cut", [picture(9)[:60]], ["a red disc"])
    (tmp_path / "data").mkdir()
    write_shards([*named, cut], tmp_path / "shards", "test", 2).save(tmp_path / "data" / "test.json")
    model = model_folder(both(), tmp_path / "model")
    settings = ("captioning.text.tokens=12", "retrieval.text.tokens=12", "workers=1")
    context = RunContext(preset="shapes", overrides=settings, store=str(tmp_path / "store"))
    result = evaluate(context, data=tmp_path / "data", model=model, out=tmp_path / "out")
    assert result.scores == {"captioning": {}}
    assert set(result.not_scored) == {"retrieval", "captioning.cider"}
    assert "can be evaluated: 2 (empty text), 1 (image is" in result.not_scored["retrieval"]
    assert sum(result.rejected.values()) == 3


def test_of_a_bucket_a_sample_is_read_and_no_shard_copied(s3: str, monkeypatch: pytest.MonkeyPatch):
    found = [Sample(f"{i}", [picture(i)], texts) for i, texts in enumerate(([], ["a red disc"], ["a blue disc"]))]
    manifest = write_shards(found, f"{s3}/shards", "test", 3)
    monkeypatch.setattr(S3Store, "fetch", lambda *_: pytest.fail("a shard was copied"))
    cfg = EvaluateConfig(tasks=("retrieval",))
    assert without_unscored(cfg, manifest) == (cfg, {})
