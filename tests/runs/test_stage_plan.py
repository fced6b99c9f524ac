"""The plan checks all settings before anything runs, and a stage's key changes exactly if the stage must run again."""

import json
import os
from pathlib import Path

import pytest
from fake_hub import use_hub

from blip.config import ConfigError
from blip.models.weights.mirror import VARIABLE
from blip.runs import plan as module
from blip.runs.plan import FORMATS, listing, plan
from blip.runs.stages import BLIP2, BOOTSTRAP
from blip.shards.manifest import Manifest
from blip.shards.sample import Sample
from blip.shards.writing import write_shards
from blip.storage import StoreError, open_store


def keys(*overrides: str, source: str = "tars", preset: str = "shapes") -> dict[str, str]:
    return {stage: settings[-1] for stage, settings in plan("blip", source, preset, overrides).items()}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {stage for stage in before if before[stage] != after[stage]}


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "folder" else request.getfixturevalue("s3")


@pytest.fixture
def tars(root: str) -> list[str]:
    """Settings that name a folder of tars for each split, with one tar in each."""
    for split in ("gold", "web", "test"):
        put(f"{root}/{split}", "0.tar", b"first")
    return [f"ingest.data.{split}={root}/{split}" for split in ("gold", "web", "test")]


def put(folder: str, name: str, data: bytes) -> None:
    open_store(folder).put(name, data)


def test_every_stage_gets_its_own_settings_and_a_key():
    found = plan("blip", "shapes", "shapes", ["pretrain.epochs=2", "capfilt.workers=1", "pretrain.seed=7"])
    assert set(found) == {*BOOTSTRAP, "report"} <= set(FORMATS)
    assert found["pretrain"][:-1] == ["pretrain.epochs=2", "pretrain.seed=7"]
    assert found["capfilt"][:-1] == ["capfilt.workers=1"]
    assert found["evaluate"][:-1] == []
    assert all(settings[-1].startswith("key=") for settings in found.values())
    assert len({settings[-1] for settings in found.values()}) == len(found)


def test_the_stages_of_blip2_get_theirs_and_the_models_that_are_made_first_are_not_missed():
    found = plan("blip2", "shapes", "blip2_shapes", ["blip2_stage2.steps=2", "frozen.miniatures.seed=3"], BLIP2)
    assert set(found) == {*BLIP2, "report"} <= set(FORMATS)
    assert found["blip2_stage2"][:-1] == ["blip2_stage2.steps=2"]
    assert found["blip2_stage2_t5"][:-1] == []
    assert len({settings[-1] for settings in found.values()}) == len(found)
    other = plan("blip2", "shapes", "blip2_shapes", ["frozen.miniatures.seed=4"], BLIP2)
    assert [stage for stage in found if found[stage][-1] != other[stage][-1]] == ["frozen", "blip2_stage2"]


def test_a_setting_changes_the_key_of_its_own_stage_alone():
    shapes = keys(source="shapes")
    assert changed(shapes, keys(source="shapes")) == set()
    assert changed(shapes, keys("select.rule.web=0.7", source="shapes")) == {"select"}
    assert changed(shapes, keys("pretrain.epochs=9", source="shapes")) == {"pretrain"}


def test_a_number_of_a_stage_changes_its_key_and_the_codes_revision_does_not(monkeypatch):
    before = keys(source="shapes")
    monkeypatch.setenv("BLIP_REVISION", "newer")
    assert changed(before, keys(source="shapes")) == set()
    monkeypatch.setitem(module.FORMATS, "filter", 2)
    assert changed(before, keys(source="shapes")) == {"filter"}


def test_a_tar_that_was_replaced_or_added_or_removed_changes_the_key_of_who_reads_it(root, tars):
    before = keys(*tars)
    assert changed(before, keys(*tars)) == set()
    put(f"{root}/web", "0.tar", b"third")  # as many bytes
    replaced = keys(*tars)
    assert changed(before, replaced) == {"ingest"}
    put(f"{root}/web", "1.tar", b"more")
    added = keys(*tars)
    assert changed(replaced, added) == {"ingest"}
    open_store(f"{root}/web").delete("1.tar")
    assert changed(replaced, keys(*tars)) == set()


def test_what_is_no_tar_in_a_folder_of_tars_does_not_count(root, tars):
    before = keys(*tars)
    put(f"{root}/web", "notes.txt", b"words")
    assert changed(before, keys(*tars)) == set()


def test_a_pattern_counts_the_tars_that_it_names(root, tars):
    put(f"{root}/web", "1.tar", b"first")
    put(f"{root}/web", "9.tar", b"first")
    pattern = [*tars, f"ingest.data.web={root}/web/{{0..1}}.tar"]
    before = keys(*pattern)
    put(f"{root}/web", "9.tar", b"other")
    assert changed(before, keys(*pattern)) == set()
    put(f"{root}/web", "1.tar", b"other")
    assert changed(before, keys(*pattern)) == {"ingest"}


def test_capfilt_is_known_by_the_tars_that_it_reads_itself(root, tars):
    put(f"{root}/more", "0.tar", b"first")
    settings = [*tars, f"capfilt.source={root}/more/{{0..0}}.tar"]
    before = keys(*settings)
    put(f"{root}/more", "0.tar", b"other")
    assert changed(before, keys(*settings)) == {"capfilt"}


def test_weights_and_word_pieces_count(root, tars):
    put(f"{root}/weights", "bert.safetensors", b"1")
    put(f"{root}/words", "vocab.txt", b"a")
    settings = [*tars, f"pretrain.init.text={root}/weights/bert.safetensors", f"ingest.tokenizer={root}/words"]
    before = keys(*settings)
    put(f"{root}/weights", "bert.safetensors", b"2")
    assert changed(before, keys(*settings)) == {"pretrain"}
    before = keys(*settings)
    put(f"{root}/words", "vocab.txt", b"b")
    assert changed(before, keys(*settings)) == {"ingest"}


def test_a_manifest_counts_with_its_tars(root, tars):
    made = write_shards([Sample(f"{i}", [b"image"], ["text"]) for i in range(2)], f"{root}/made", "web", 1)
    made.save(f"{root}/lists/web.json")
    source = f"{root}/lists/web.json"
    before = keys(*tars, source=source)
    store = open_store(f"{root}/made")
    store.put(made.shards[1].name, store.get(made.shards[0].name))
    replaced = keys(*tars, source=source)
    assert changed(before, replaced) == {"ingest"}
    Manifest(name="other", root=made.root).save(source)
    assert changed(replaced, keys(*tars, source=source)) == {"ingest"}


def test_a_copy_of_shards_is_no_input(tmp_path, tars):
    settings = [*tars, f"pretrain.loader.cache={tmp_path}/copies"]
    before = keys(*settings)
    put(f"{tmp_path}/copies", "0.tar", b"copied")
    assert changed(before, keys(*settings)) == set()


@pytest.mark.parametrize(
    "text", ["", "a picture of ", "web", "text_encoder.*", "a/b", "a{b", "x" * 300, "/", "no/../such"]
)
def test_a_text_that_is_no_place_lists_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "webs").mkdir()
    put(f"{tmp_path}/webs", "0.tar", b"first")
    if text != "/":
        assert listing(text) == {}


def test_a_web_server_that_does_not_answer_is_one_line():
    with pytest.raises(StoreError, match=r"^http://127\.0\.0\.1:9/web\.parquet: .*"):
        listing("http://127.0.0.1:9/web.parquet")


def test_a_bucket_that_does_not_answer_is_one_line(monkeypatch):
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StoreError, match="s3://nowhere"):
        keys("ingest.data.gold=s3://nowhere/a", "ingest.data.web=s3://nowhere/b", "ingest.data.test=s3://nowhere/c")


@pytest.mark.parametrize(
    ("name", "source", "preset", "overrides", "said"),
    [
        ("bob's", "shapes", "shapes", [], 'model name "bob\'s"'),
        ("a/b", "shapes", "shapes", [], "model name 'a/b'"),
        (
            "blip",
            "tars",
            "shapes",
            [],
            r"set data.gold=..., data.web=..., data.test=... to where the tars lie.*ingest\.data\.gold",
        ),
        (
            "blip",
            "tars",
            "base",
            ["ingest.data.gold=/g", "ingest.data.test=/t"],
            r"set data.web=\.\.\. to where.*ingest.data.web=",
        ),
        ("blip", "web.json", "shapes", ["ingest.data.gold=/g"], r"set data.test=\.\.\. to where"),
        (
            "blip",
            "./my-pictures",
            "shapes",
            [],
            "source './my-pictures' is not understood: ./my-pictures: nothing is there",
        ),
        ("blip", "", "shapes", [], "source '' is not understood"),
        ("blip", "shapes", "huge", [], "preset 'huge' is neither"),
        ("blip", "shapes", "shapes", ["evaluate.taks=1"], "unknown key taks"),
        ("blip", "shapes", "shapes", ["optimizer.lr=1"], "must begin with its stage"),
        (
            "blip",
            "shapes",
            "shapes",
            ["evaluate.captioning=null"],
            "register.gate asks for captioning.cider, which evaluate.captioning=null",
        ),
    ],
)
def test_a_mistake_is_said_before_anything_runs(name, source, preset, overrides, said):
    with pytest.raises(ConfigError, match=said):
        plan(name, source, preset, overrides)


def test_all_weights_that_are_nowhere_are_named_before_anything_runs(tars, tmp_path, monkeypatch):
    use_hub(tmp_path / "home", "http://127.0.0.1:9", monkeypatch, offline=True)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mirror"))
    with pytest.raises(ConfigError) as raised:
        plan("blip", "tars", "base", [*tars, "captioner.init.checkpoint=./nowhere.pth"])
    lines = str(raised.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "ingest.tokenizer",
        "pretrain.init.vision",
        "pretrain.init.text",
        "captioner.init.checkpoint",
    ]
    assert all("blip fetch-weights --preset PRESET --to" in line for line in lines[:3])
    words = ["ingest.tokenizer=tests/golden/vocab.txt", "pretrain.init.vision=null", "pretrain.init.text=null"]
    assert plan("blip", "tars", "base", [*tars, *words])


def test_a_gate_may_ask_for_what_is_left():
    assert plan("blip", "shapes", "shapes", ["evaluate.captioning=null", "register.gate=[retrieval.mean]"])


def test_a_type_that_is_set_goes_before_the_source(tmp_path):
    put(f"{tmp_path}/all", "0.tar", b"first")
    tars = [f"ingest.data.{split}={tmp_path}/all" for split in ("gold", "web", "test")]
    stated = plan("blip", "shapes", "shapes", ["ingest.data.type=tars", *tars])
    assert stated["ingest"][-1] == plan("blip", "tars", "shapes", tars)["ingest"][-1]


def test_keys_are_the_same_wherever_it_is_asked(tmp_path, monkeypatch):
    before = json.dumps(keys(source="shapes"))
    monkeypatch.chdir(tmp_path)
    os.makedirs("gold")
    assert json.dumps(keys(source="shapes")) == before
