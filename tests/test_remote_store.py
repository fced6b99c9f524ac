"""Data are read wherever fsspec reaches, and nothing is written there."""

import functools
import http.server
import importlib
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fake_hub import fake_hub
from huggingface_hub import HfFileSystem
from tiny_models import picture

from blip.config import ConfigError
from blip.runs.found import read_without_keys
from blip.runs.pictures import Sources
from blip.shards.discover import discover
from blip.shards.reading import samples
from blip.storage import MissingKeyError, StoreError, UnusableStoreError, open_store


def tar_of(*numbers: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in numbers:
            for ending, data in (("png", picture(number)), ("txt", f"a dog {number}".encode())):
                member = tarfile.TarInfo(f"{number:04d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder of fsspec's memory with two tars."""
    memory = fsspec.filesystem("memory")
    for number in (0, 1):
        memory.pipe_file(f"/bucket/web/{number}.tar", tar_of(number))
    yield "memory://bucket/web"
    memory.rm("/bucket", recursive=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server on the loopback, which lists its folders and knows no ranges."""
    (tmp_path / "www").mkdir()
    for number in (0, 1):
        (tmp_path / "www" / f"{number}.tar").write_bytes(tar_of(number))

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    handler = functools.partial(Silent, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_objects_are_listed_and_read(bucket: str, tmp_path: Path):
    store = open_store(bucket)
    assert store.list() == ["0.tar", "1.tar"]
    assert store.list("1") == ["1.tar"]
    assert store.get("0.tar") == tar_of(0)
    assert store.read("0.tar", 512, 8) == tar_of(0)[512:520]
    store.fetch("1.tar", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == tar_of(1)
    assert store.size("0.tar") == len(tar_of(0))
    assert store.reads_parts("0.tar")
    assert store.exists("0.tar")
    assert not store.exists("2.tar")
    stamp = store.stamps()["0.tar"]
    fsspec.filesystem("memory").pipe_file("/bucket/web/0.tar", tar_of(7))
    assert store.stamps()["0.tar"] != stamp
    assert pickle.loads(pickle.dumps(store)).list() == store.list()  # loaders' workers get stores
    with pytest.raises(MissingKeyError, match=r"memory://bucket/web/none does not exist"):
        store.get("none")
    with pytest.raises(StoreError, match="ends before byte"):
        store.read("0.tar", 0, 10**7)


def test_nothing_is_written(bucket: str):
    store = open_store(bucket)
    for write in (lambda: store.put("a", b""), lambda: store.put_new("a", b""), lambda: store.delete("0.tar")):
        with pytest.raises(StoreError, match=r"memory:// is only read.*s3://bucket/prefix"):
            write()


def test_tars_are_read_in_place(bucket: str):
    for source in (bucket, f"{bucket}/*.tar", f"{bucket}/{{0..1}}.tar"):
        assert [sample.texts for sample in samples(discover(source))] == [["a dog 0"], ["a dog 1"]]


def test_a_web_server_is_read_by_link_and_by_name(server: str):
    store = open_store(server)
    assert store.list() == ["0.tar", "1.tar"]
    assert store.read("1.tar", 512, 8) == tar_of(1)[512:520]
    assert store.size("1.tar") == len(tar_of(1))
    assert not store.reads_parts("1.tar")  # this server sends whole files
    for source, texts in ((server, 2), (f"{server}/1.tar", 1), (f"{server}/{{0..1}}.tar", 2)):
        assert len(list(samples(discover(source)))) == texts
    with pytest.raises(StoreError, match=r"2\.tar is missing"):
        discover(f"{server}/{{1..2}}.tar")


@pytest.mark.parametrize(("uri", "package"), [("gs://bucket/web", "gcsfs"), ("https://server/web", "aiohttp")])
def test_a_missing_package_is_named(uri: str, package: str, monkeypatch: pytest.MonkeyPatch):
    real = importlib.import_module

    def without(name: str, *rest: str):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(StoreError, match=rf"{uri} is read by the package {package}.*: pip install {package}$"):
        open_store(uri)


def test_a_package_that_lacks_another_is_named_and_not_the_other(monkeypatch: pytest.MonkeyPatch):
    real = importlib.import_module

    def broken(name: str, *rest: str):
        if name.partition(".")[0] == "gcsfs":
            raise ModuleNotFoundError("No module named 'google.iam'", name="google.iam")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(
        UnusableStoreError, match=r"gcsfs, which .*google\.iam'\): pip install --force-reinstall gcsfs$"
    ):
        open_store("gs://bucket/web")


def test_a_repository_that_is_not_shown_is_not_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with fake_hub(tmp_path, monkeypatch) as hub:
        HfFileSystem.clear_instance_cache()
        hub.status["someone/private"] = 401
        for read in (lambda store: store.list(), lambda store: store.get("0.tar")):
            with pytest.raises(MissingKeyError, match=r"does not exist, or needs keys \(set HF_TOKEN.*\): 401") as said:
                read(open_store("hf://someone/private"))
            assert "\n" not in str(said.value)
        assert not open_store("hf://someone/private").exists("0.tar")


def test_a_public_place_is_read_without_keys(monkeypatch: pytest.MonkeyPatch):
    assert open_store("hf://datasets/a/b").at("")[0].token is None  # pyright: ignore[reportAttributeAccessIssue]
    for made in (open_store("hf://datasets/a/b", anonymous=True), open_store("hf://datasets/a/b", True).join("c")):
        assert made.at("")[0].token is False  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "")
    read_without_keys(["hf://datasets/a/b/0.tar"], ["data.anonymous=true"])
    assert open_store("hf://datasets/c").at("")[0].token is False  # pyright: ignore[reportAttributeAccessIssue]
    assert open_store("hf://a/b").at("")[0].token is None  # pyright: ignore[reportAttributeAccessIssue]


def test_images_are_captioned_wherever_they_lie(server: str, tmp_path: Path):
    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.pipe_file(f"/photos/part/{number}.PNG", picture(number))
        (tmp_path / "www" / f"{number}.png").write_bytes(picture(number))
    memory.pipe_file("/photos/part/1.txt", b"a text beside it")
    for source, count in (
        ("memory://photos", 3),
        ("memory://photos/part/1.PNG", 1),
        ("memory://photos/*/[01].PNG", 2),
        ("memory://photos/part/{0,2}.PNG", 2),
        (f"{server}/2.png", 1),
        (str(tmp_path / "www" / "*.png"), 3),
        (str(tmp_path / "www" / "{0..1}.tar"), 2),
    ):
        assert len(Sources.find([source])) == count, source
    [group] = Sources.find(["memory://photos/part", f"{server}/2.png"]).groups()
    names = [entry.name for entry in group]
    assert names == [*(f"memory://photos/part/{number}.PNG" for number in range(3)), f"{server}/2.png"]
    assert [entry.load().texts for entry in group] == [[], ["a text beside it"], [], []]
    assert group[3].load().images == [picture(2)]
    memory.rm("/photos", recursive=True)
    for nowhere in ("memory://photos", "memory://photos/part", f"{server}/9.png", str(tmp_path / "*.png")):
        with pytest.raises(ConfigError, match=r"no \.tar below|no such file"):
            Sources.find([nowhere])


def test_a_web_server_that_does_not_answer_is_not_one_without_the_file():
    with pytest.raises(StoreError, match=r"Cannot connect to host 127\.0\.0\.1:9") as away:
        open_store("http://127.0.0.1:9").stamps("x.parquet")
    assert not isinstance(away.value, MissingKeyError)


def test_a_folder_with_braces_is_no_pattern(tmp_path: Path):
    for folder in ("web {a,b}", "x[1]"):
        (tmp_path / folder / "{c}").mkdir(parents=True)
        for number in (0, 1):
            (tmp_path / folder / "{c}" / f"{number}.tar").write_bytes(tar_of(number))
        place = f"{tmp_path}/{folder}"
        for source in (place, f"{place}/{{c}}/{{0..1}}.tar", f"{place}/{{c}}/*.tar", f"{place}/{{c}}/[01].tar"):
            assert len(list(samples(discover(source)))) == 2
        assert len(list(samples(discover(f"{place}/{{c}}/1.tar")))) == 1
