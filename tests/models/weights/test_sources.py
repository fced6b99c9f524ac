"""One way to find weights and vocabularies: paths, stores, a mirror, the hub's cache and the hub."""

import hashlib
from pathlib import Path
from typing import Annotated

import pytest
from fake_hub import FakeHub, fake_hub, use_hub
from pydantic import Field

from blip.config import Config
from blip.models.weights import mirror
from blip.models.weights.content import IMAGE_ENCODER, MODEL, TOKENIZER, TRANSFORMERS_MODEL, Content, named_sources
from blip.models.weights.files import WeightsError
from blip.models.weights.mirror import MIRROR_RECORD, FileRecord, MirrorRecord
from blip.models.weights.source import check_source, fetched
from blip.storage import StoreError, open_store

NAME = "google-bert/bert-base-uncased"
FILES = {
    "config.json": b"{}",
    "vocab.txt": b"[PAD]\n[UNK]\n",
    "tokenizer_config.json": b"{}",
    "model.safetensors": b"tensors" * 100,
    "pytorch_model.bin": b"pickle" * 100,
    "tf_model.h5": b"others" * 100,
}
LANGUAGE_MODEL = {
    "config.json": b"{}",
    "merges.txt": b"a b",
    "vocab.json": b"{}",
    "model.safetensors.index.json": b'{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}',
    "one.safetensors": b"1" * 500,
    "two.safetensors": b"2" * 500,
    "flax_model.msgpack": b"others" * 100,
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with fake_hub(tmp_path / "home", monkeypatch) as server:
        server.models[NAME] = dict(FILES)
        server.models["timm/vit"] = {"model.safetensors": b"vit" * 100}
        server.models["some/lm"] = dict(LANGUAGE_MODEL)
        yield server


@pytest.fixture(params=["folder", "s3"])
def uri(request, tmp_path):
    """The URI of an empty store."""
    return str(tmp_path / "store") if request.param == "folder" else f"{request.getfixturevalue('s3')}/weights"


def fill(uri: str, name: str, files: dict[str, bytes]) -> None:
    """Lays a model into a mirror, with its record."""
    store = open_store(uri).join(*name.split("/"))
    for file, data in files.items():
        store.put(file, data)
    found = {file: FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data)) for file, data in files.items()}
    store.put(MIRROR_RECORD, MirrorRecord(name=name, files=found).model_dump_json().encode())


@pytest.mark.parametrize(
    ("source", "content", "expected"),
    [
        (NAME, TOKENIZER, {"vocab.txt", "tokenizer_config.json"}),
        (NAME, MODEL, {"model.safetensors"}),
        (NAME, TRANSFORMERS_MODEL, {"config.json", "vocab.txt", "tokenizer_config.json", "model.safetensors"}),
        ("vit", IMAGE_ENCODER, {"model.safetensors"}),
        ("some/lm", TRANSFORMERS_MODEL, LANGUAGE_MODEL.keys() - {"flax_model.msgpack"}),
    ],
)
def test_of_a_hub_come_only_the_files_that_are_wanted_and_then_from_its_cache(
    hub: FakeHub, monkeypatch, source: str, content: Content, expected: set[str]
):
    with fetched(source, content) as folder:
        assert {path.name for path in folder.iterdir()} == expected
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    sent = len(hub.requests)
    with fetched(source, content) as folder:
        assert {path.name for path in folder.iterdir()} == expected
    assert len(hub.requests) == sent, "nothing is asked again"


def test_a_mirror_comes_before_the_hub_and_serves_without_it(hub: FakeHub, uri: str, monkeypatch):
    fill(uri, NAME, {"vocab.txt": b"[PAD]\nours\n", "model.safetensors": b"ours"})
    fill(uri, "timm/vit", {"model.safetensors": b"our vit"})
    monkeypatch.setenv(mirror.VARIABLE, uri)
    for source, content, file, expected in (
        (NAME, TOKENIZER, "vocab.txt", b"[PAD]\nours\n"),
        (NAME, MODEL, "model.safetensors", b"ours"),
        ("vit", IMAGE_ENCODER, "model.safetensors", b"our vit"),
        ("timm/vit", IMAGE_ENCODER, "model.safetensors", b"our vit"),
    ):
        check_source(source, content)
        with fetched(source, content) as folder:
            assert (folder / file).read_bytes() == expected
    assert hub.downloads() == []
    with fetched("some/lm", TRANSFORMERS_MODEL):
        assert hub.downloads(), "what the mirror lacks comes from the hub"


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("damage", [b"other", b"ours but longer", b""])
def test_a_file_of_a_mirror_that_was_altered_is_refused(uri: str, monkeypatch, damage: bytes):
    fill(uri, NAME, {"model.safetensors": b"right"})
    open_store(uri).join(*NAME.split("/")).put("model.safetensors", damage)
    monkeypatch.setenv(mirror.VARIABLE, uri)
    said = r"model\.safetensors is not the file that was fetched.*fetch-weights"
    with pytest.raises(StoreError, match=said) as raised, fetched(NAME):
        pass
    assert "\n" not in str(raised.value)
    for source in (f"{uri}/{NAME}", f"{uri}/{NAME}/model.safetensors"):
        with pytest.raises(StoreError, match=said), fetched(source):
            pass


@pytest.mark.usefixtures("hub")
def test_a_local_copy_is_made_once_and_again_when_it_was_altered(s3: str, monkeypatch):
    fill(s3, NAME, {"model.safetensors": b"right"})
    monkeypatch.setenv(mirror.VARIABLE, s3)
    with fetched(NAME) as folder:
        before = (folder / "model.safetensors").stat().st_ino
    with fetched(NAME) as folder:
        assert (folder / "model.safetensors").stat().st_ino == before
    (folder / "model.safetensors").write_bytes(b"wrong")
    mirror.verified.clear()  # as in another process
    with fetched(NAME) as folder:
        assert (folder / "model.safetensors").read_bytes() == b"right"


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    "content", [b"", b"[]", b"no JSON", b'{"name": 1}', b'{"name": "a", "files": {"b": "c"}}', b"[" * 100_000]
)
def test_a_record_that_is_none_is_named(uri: str, content: bytes, monkeypatch):
    fill(uri, NAME, {"model.safetensors": b"right"})
    open_store(uri).join(*NAME.split("/")).put(MIRROR_RECORD, content)
    monkeypatch.setenv(mirror.VARIABLE, uri)
    with pytest.raises(StoreError, match=rf"{MIRROR_RECORD}.*delete it") as raised, fetched(NAME):
        pass
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("hub")
def test_parts_that_are_missing_are_named_and_sought_elsewhere(uri: str, monkeypatch):
    parts = {name: data for name, data in LANGUAGE_MODEL.items() if name != "two.safetensors"}
    fill(uri, "some/lm", parts)
    with pytest.raises(WeightsError, match=r"lacks two\.safetensors, which its model\.safetensors\.index\.json names"):
        check_source(f"{uri}/some/lm", TRANSFORMERS_MODEL)
    monkeypatch.setenv(mirror.VARIABLE, uri)
    with fetched("some/lm", TRANSFORMERS_MODEL) as folder:
        assert (folder / "two.safetensors").read_bytes() == LANGUAGE_MODEL["two.safetensors"]


def test_what_is_nowhere_is_named_with_all_places_and_a_way_out(tmp_path: Path, uri: str, monkeypatch):
    use_hub(tmp_path / "home", "http://127.0.0.1:9", monkeypatch, offline=True)
    monkeypatch.setenv(mirror.VARIABLE, uri)
    with pytest.raises(WeightsError) as raised:
        check_source(NAME, TOKENIZER)
    said = str(raised.value)
    assert "\n" not in said
    for part in (
        f"tokenizer '{NAME}'",
        f"the mirror {uri}/{NAME} holds no tokenizer.json or vocab.txt",
        f"the hub's cache {tmp_path}/home/hub does not have it",
        "the hub is not asked, since HF_HUB_OFFLINE is set",
        f"blip fetch-weights --preset PRESET --to {uri}",
    ):
        assert part in said, said


@pytest.mark.parametrize(
    "source", ["./nowhere", "a/b/c", "nowhere/model.pth", "vocab.txt", "-x/../y", "name with blanks"]
)
def test_a_path_that_is_not_there_is_no_name(source: str, tmp_path: Path, monkeypatch):
    use_hub(tmp_path, "http://127.0.0.1:9", monkeypatch)
    with pytest.raises(WeightsError, match="no such file or folder, and no hub name"):
        check_source(source)


class Encoder(Config):
    weights: Annotated[str | None, IMAGE_ENCODER] = None
    name: str = "not a source"


class Stage(Config):
    encoder: Encoder | None = None
    others: tuple[Encoder, ...] = ()
    by_name: dict[str, Encoder] = Field(default={})
    words: Annotated[str, TOKENIZER] = ""


def test_the_settings_that_name_a_source_are_found_wherever_they_stand():
    assert list(named_sources(Stage())) == []
    stage = Stage(
        encoder=Encoder(weights="a"),
        others=(Encoder(), Encoder(weights="b")),
        by_name={"x": Encoder(weights="c")},
        words="d",
    )
    assert list(named_sources(stage)) == [
        ("encoder.weights", "a", IMAGE_ENCODER),
        ("others.1.weights", "b", IMAGE_ENCODER),
        ("by_name.x.weights", "c", IMAGE_ENCODER),
        ("words", "d", TOKENIZER),
    ]
