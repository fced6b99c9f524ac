"""`blip fetch-weights` fills a mirror once, and every preset then starts from it without a network."""

import hashlib
import json
import os
import re
import time
from multiprocessing import get_context
from pathlib import Path
from threading import Thread

import pytest
from fake_hub import COMMIT, FakeHub, fake_hub, use_hub
from huggingface_hub import hf_hub_download
from typer.testing import CliRunner

from blip.cli import app
from blip.config import EXIT_CONFIG, presets
from blip.models.weights.content import named_sources
from blip.models.weights.mirror import MIRROR_RECORD, VARIABLE, folder_of, read_mirror_record
from blip.models.weights.source import check_source
from blip.runs.fetch_weights import fetch_weights, wanted_models
from blip.runs.stages import config_classes, load_stages
from blip.storage import StoreError, open_store

BERT, DEIT = "google-bert/bert-base-uncased", "timm/deit_base_patch16_224.fb_in1k"
DATA = [f"ingest.data.{split}=s3://nowhere/{split}/" for split in ("gold", "web", "test")]
VOCABULARY = Path("tests/golden/vocab.txt").read_bytes()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with the models that the presets name, in small."""
    with fake_hub(tmp_path / "home", monkeypatch) as server:
        for preset in presets():
            for name in wanted_models(preset, [], [*config_classes()]):
                server.models[name] = {
                    "README.md": b"a model",
                    "config.json": b"{}",
                    "vocab.txt": VOCABULARY,
                    "tokenizer.json": b'{"version": "1.0"}',
                    "model.safetensors": f"tensors of {name}".encode() * 20,
                    "pytorch_model.bin": b"the same in another format" * 20,
                }
        yield server


@pytest.fixture(params=["folder", "s3"])
def uri(request, tmp_path):
    """The URI of an empty store."""
    return str(tmp_path / "store") if request.param == "folder" else f"{request.getfixturevalue('s3')}/weights"


def test_a_store_is_filled_once_with_what_is_wanted_and_its_digests(hub: FakeHub, uri: str):
    found = fetch_weights("base", [], uri)
    assert found.models.keys() == {BERT, DEIT}
    assert found.models[BERT].settings == ("ingest.tokenizer", "pretrain.init.text")
    assert found.models[DEIT].settings == ("pretrain.init.vision",)
    assert set(open_store(uri).list()) == {
        *(f"{BERT}/{file}" for file in ("tokenizer.json", "vocab.txt", "model.safetensors", MIRROR_RECORD)),
        *(f"{DEIT}/{file}" for file in ("model.safetensors", MIRROR_RECORD)),
    }
    assert found.fetched_bytes == sum(len(hub.models[n][file]) for n in (BERT, DEIT) for file in found.models[n].files)
    for name in (BERT, DEIT):
        record = read_mirror_record(folder_of(uri, name))
        assert record is not None
        assert (record.name, record.revision) == (name, COMMIT)
        for file, entry in record.files.items():
            data = folder_of(uri, name).get(file)
            assert data == hub.models[name][file]
            assert entry.sha256 == hashlib.sha256(data).hexdigest() == found.models[name].files[file]
    asked = len(hub.requests)
    again = fetch_weights("base", [], uri)
    assert again.fetched_bytes == 0
    assert again.models == found.models
    assert len(hub.requests) == asked, "a store that has all of it needs no hub"


@pytest.mark.parametrize("preset", presets())
def test_every_preset_finds_all_its_sources_in_a_folder_store_without_a_network(
    preset: str, hub: FakeHub, tmp_path: Path, monkeypatch
):
    names = [*config_classes()]
    fetch_weights(preset, [], str(tmp_path / "store"), names)
    sent = len(hub.requests)
    use_hub(tmp_path / "empty", "http://127.0.0.1:9", monkeypatch, offline=True)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "store"))
    sources = [
        (source, content)
        for config in load_stages(preset, ["ingest.data.type=shapes"], names).values()
        for _, source, content in named_sources(config)
    ]
    for source, content in sources:
        check_source(source, content)
    assert len(hub.requests) == sent
    assert sources or preset not in ("base", "large", "reference")


def test_a_stage_of_its_own_is_fetched_by_its_name_with_all_that_loading_its_models_takes(hub: FakeHub, tmp_path: Path):
    found = fetch_weights("base", [], str(tmp_path / "store"), ["blip2_stage2"])
    assert {setting for model in found.models.values() for setting in model.settings} == {
        "blip2_stage2.model.vision.source",
        "blip2_stage2.model.language_model.source",
    }
    assert all({"config.json", "model.safetensors"} <= model.files.keys() for model in found.models.values())
    assert {"tokenizer.json", "vocab.txt"} <= found.models["facebook/opt-2.7b"].files.keys()
    code, said = blip("--preset", "blip2_g", "--to", str(tmp_path / "all"), "--pipeline", "blip2")
    assert code == 0, said
    for name in ("facebook/opt-2.7b", "google/flan-t5-xl", BERT):
        assert read_mirror_record(folder_of(str(tmp_path / "all"), name)), name
    code, said = blip("--preset", "base", "--to", str(tmp_path / "store"), "--stage", "blip3")
    assert (code, "stage 'blip3' is unknown; choices: ingest, " in said) == (EXIT_CONFIG, True)
    assert hub.downloads()


def test_a_second_preset_adds_what_it_needs_of_the_same_commit(hub: FakeHub, tmp_path: Path):
    store = str(tmp_path / "store")
    fetch_weights("base", ["pretrain.init.text=null"], store)
    assert read_mirror_record(folder_of(store, BERT)).files.keys() == {"vocab.txt", "tokenizer.json"}  # pyright: ignore
    hub.requests.clear()
    found = fetch_weights("large", [], store)
    assert found.models.keys() == {BERT, "timm/vit_large_patch16_224.augreg_in21k"}
    assert [name for name, _ in hub.downloads()] == ["model.safetensors", "model.safetensors"]
    assert found.models[BERT].files.keys() == {"vocab.txt", "tokenizer.json", "model.safetensors"}
    assert f"/api/models/{BERT}/revision/{COMMIT}" in [path for _, path, _ in hub.requests]


def test_a_file_that_is_missing_from_the_store_is_fetched_again(hub: FakeHub, uri: str):
    fetch_weights("base", [], uri)
    folder_of(uri, BERT).delete("model.safetensors")
    hub.requests.clear()
    fetch_weights("base", [], uri)
    assert [name for name, _ in hub.downloads()] == ["model.safetensors"]
    assert folder_of(uri, BERT).get("model.safetensors") == hub.models[BERT]["model.safetensors"]


def test_a_download_that_is_killed_goes_on_where_it_was(hub: FakeHub, tmp_path: Path):
    weights = os.urandom(12_000_000)  # the client writes pieces of 10 MiB
    hub.models[BERT]["model.safetensors"] = weights
    hub.stall["model.safetensors"] = 11_000_000
    partial = tmp_path / "home" / "blip" / "partial"
    first = get_context("fork").Process(target=fetch_weights, args=("base", [], str(tmp_path / "store")))
    first.start()
    while sum(path.stat().st_size for path in partial.glob("*")) < 10 << 20:
        assert first.is_alive()
        time.sleep(0.05)
    first.kill()
    first.join()
    hub.stall.clear()
    hub.requests.clear()
    found = fetch_weights("base", [], str(tmp_path / "store"))
    assert found.models[BERT].files["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert [span for name, span in hub.downloads() if name == "model.safetensors"] == [f"bytes={10 << 20}-", ""]
    assert open_store(tmp_path / "store").get(f"{BERT}/model.safetensors") == weights
    assert not list(partial.glob("*")), "nothing is left"


def test_progress_counts_megabytes_there_and_back_and_digests_are_logged(hub: FakeHub, tmp_path: Path, caplog):
    hub.models[BERT]["model.safetensors"] = os.urandom(3_000_000)
    with caplog.at_level("INFO"):
        found = fetch_weights("base", [], str(tmp_path / "store"))
    digest = found.models[BERT].files["model.safetensors"]
    assert f"{BERT}/model.safetensors: 3,000,000 bytes stored, SHA-256 {digest}" in caplog.text
    assert re.search(r"fetching and storing 6/6 MB 100% [\d.]+/s in ", caplog.text), caplog.text


def test_the_hubs_token_is_sent_to_the_hub_alone(hub: FakeHub, tmp_path: Path, monkeypatch):
    """Large files lie on another host, by a signed address that takes no token."""
    with FakeHub() as content:
        Thread(target=content.serve_forever, daemon=True).start()
        content.models = hub.models
        hub.content_server = content
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        found = fetch_weights("base", [], str(tmp_path / "store"))
        content.shutdown()
    assert found.models[DEIT].files["model.safetensors"]
    assert hub.tokens == {"Bearer hf_secret"}
    assert content.tokens == {""}
    assert [name for name, _ in content.downloads()] == ["vocab.txt", "model.safetensors", "model.safetensors"]


def test_what_the_hub_promises_and_does_not_send_is_not_stored(hub: FakeHub, tmp_path: Path):
    for file in ("model.safetensors", "vocab.txt"):
        hub.damaged = {file}
        with pytest.raises(StoreError, match=rf"{file}: what came is not what the hub says it is; try again"):
            fetch_weights("base", [], str(tmp_path / file))
        assert not any(key.endswith(file) for key in open_store(tmp_path / file).list())
        hub.damaged = set()
        fetch_weights("base", [], str(tmp_path / file))


@pytest.mark.usefixtures("hub")
def test_without_a_network_the_hubs_cache_is_taken(tmp_path: Path, monkeypatch):
    for name in (BERT, DEIT):
        for file in ("model.safetensors", "vocab.txt"):
            hf_hub_download(name, file)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = fetch_weights("base", [], str(tmp_path / "store"))
    assert found.models[BERT].files.keys() == {"model.safetensors", "vocab.txt"}
    assert found.models[BERT].revision == COMMIT


def blip(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["fetch-weights", *words])
    return done.exit_code, done.stderr.strip()


def test_mistakes_are_one_line_with_a_way_out(hub: FakeHub, tmp_path: Path, monkeypatch):
    to = ["--to", str(tmp_path / "store")]
    code, said = blip("--preset", "base", *to, "--set", "pretrain.init.text=nobody/bert")
    assert code == EXIT_CONFIG
    assert "nobody/bert" in said and "there is no such model" in said, said  # noqa: PT018
    code, said = blip("--preset", "base", *to, "--set", f"ingest.tokenizer={DEIT}-no")
    assert code == EXIT_CONFIG
    hub.models["some/words"] = {"README.md": b"no words"}
    code, said = blip("--preset", "base", *to, "--set", "ingest.tokenizer=some/words")
    assert code == EXIT_CONFIG
    assert "some/words: the hub" in said and "holds no tokenizer.json or vocab.txt" in said, said  # noqa: PT018
    hub.status[BERT] = 401
    code, said = blip("--preset", "base", *to)
    assert code == EXIT_CONFIG
    assert BERT in said and "HF_TOKEN" in said, said  # noqa: PT018
    hub.status[BERT] = 503
    code, said = blip("--preset", "base", *to)
    assert code == 1, "trying again may help"
    assert BERT in said and "does not answer" in said, said  # noqa: PT018
    use_hub(tmp_path / "empty", "http://127.0.0.1:9", monkeypatch, offline=True)
    code, said = blip("--preset", "base", *to)
    assert code == EXIT_CONFIG
    assert BERT in said and "where there is a network, with HF_HUB_OFFLINE=0" in said, said  # noqa: PT018
    assert "\n" not in said
    for words in (["--preset", "base"], to, ["--preset", "based", *to], ["--preset", "base", "--to", "ftp://x"]):
        code, said = blip(*words)
        assert code in (EXIT_CONFIG, 1)
        assert "\n" not in said
    assert not any(key.endswith(MIRROR_RECORD) for key in open_store(tmp_path / "store").list())


@pytest.mark.usefixtures("hub")
def test_places_are_left_where_they_are(tmp_path: Path):
    (tmp_path / "bert").mkdir()
    overrides = [f"pretrain.init.text={tmp_path}/bert", "ingest.tokenizer=s3://bucket/vocab.txt"]
    assert fetch_weights("base", [*DATA, *overrides], str(tmp_path / "store")).models.keys() == {DEIT}
    assert json.loads(open_store(tmp_path / "store").get(f"{DEIT}/{MIRROR_RECORD}"))["revision"] == COMMIT
