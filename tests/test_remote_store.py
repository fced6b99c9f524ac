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
from tiny_models import picture

from blip.shards.discover import discover
from blip.shards.reading import samples
from blip.storage import MissingKeyError, StoreError, open_store


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
