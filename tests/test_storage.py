"""Both stores have the same semantics, and S3 survives transient failures."""

import io
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from blip.storage import FolderStore, MissingKeyError, ObjectFile, Store, StoreError, locate, open_store, probe
from blip.storage.s3 import S3Store, s3_client


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return (
        open_store(tmp_path / "store")
        if request.param == "folder"
        else open_store(f"{request.getfixturevalue('s3')}/some/prefix")
    )


def test_bytes_come_back(store: Store, tmp_path: Path):
    store.put("a/b.bin", b"0123456789")
    store.put("a/b.bin", b"abcdefghij")
    store.put("empty", b"")
    assert store.get("a/b.bin") == b"abcdefghij"
    assert store.get("empty") == b""
    assert store.read("a/b.bin", 3, 4) == b"defg"
    assert store.read("a/b.bin", 3, 0) == b""
    assert store.size("a/b.bin") == 10
    with ObjectFile(store, "a/b.bin") as file:
        assert (file.read(3), file.seek(-2, io.SEEK_END), file.read(9), file.read(1)) == (b"abc", 8, b"ij", b"")
    assert store.exists("a/b.bin")
    assert not store.exists("a")
    store.fetch("a/b.bin", tmp_path / "copy")
    store.put_file("copied", tmp_path / "copy")
    assert store.get("copied") == b"abcdefghij"
    assert open_store(store.uri).get("copied") == b"abcdefghij"


@pytest.mark.parametrize(
    "attempt",
    [
        lambda s, _: s.get("no"),
        lambda s, _: s.read("no", 0, 1),
        lambda s, p: s.fetch("no", p / "copy"),
        lambda s, _: s.size("no"),
    ],
)
def test_what_is_missing_is_named(store: Store, tmp_path: Path, attempt):
    with pytest.raises(MissingKeyError, match=f"{store.uri}/no does not exist"):
        attempt(store, tmp_path)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(("offset", "size"), [(2, 9), (20, 1)])
def test_a_read_past_the_end_is_an_error(store: Store, offset: int, size: int):
    store.put("ten", b"0123456789")
    with pytest.raises(StoreError, match=r"/ten ends before"):
        store.read("ten", offset, size)


@pytest.mark.parametrize("key", ["", "/etc/passwd", "a//b", "../up", "a/../b", ".hidden", "a/"])
def test_a_key_stays_inside(store: Store, key: str):
    with pytest.raises(StoreError, match="relative path"):
        store.put(key, b"")


def test_listing_is_sorted_and_takes_any_prefix(store: Store):
    for key in ("b/2", "b/10", "a", "b/x/y", "bc"):
        store.put(key, b"")
    assert store.list() == ["a", "b/10", "b/2", "b/x/y", "bc"]
    assert store.list("b") == ["b/10", "b/2", "b/x/y", "bc"]
    assert store.list("b/") == ["b/10", "b/2", "b/x/y"]
    assert store.list("b/1") == ["b/10"]
    assert store.list("none/") == []
    store.delete("b/2")
    store.delete("b/2")
    assert store.list("b/") == ["b/10", "b/x/y"]


def test_a_listing_tells_what_was_written_again(store: Store):
    for key in ("b/2", "a", "b/x/y", "bc"):
        store.put(key, b"0123")
    before = store.stamps("b")
    assert list(before) == store.list("b") == ["b/2", "b/x/y", "bc"]
    assert store.stamps("b") == before
    time.sleep(0.02)  # a file's time has a grain
    store.put("b/x/y", b"3210")
    store.put("bc", b"01234")
    after = store.stamps("b")
    assert [key for key in before if after[key] != before[key]] == ["b/x/y", "bc"]
    assert store.stamps("none/") == {}


def test_prefixes_nest(store: Store):
    inner = store.join("one", "two/three")
    inner.put("key", b"deep")
    assert store.list() == ["one/two/three/key"]
    assert store.join("one").get("two/three/key") == b"deep"
    assert inner.list() == ["key"]
    where, key = locate(f"{inner.uri}/key")
    assert where.get(key) == b"deep"


def test_conditional_writes(store: Store):
    assert store.get_tagged("lease") is None
    assert store.put_new("lease", b"mine")
    assert not store.put_new("lease", b"theirs")
    data, tag = store.get_tagged("lease") or (b"", "")
    assert data == b"mine"
    assert store.put_if("lease", b"theirs", tag)
    assert not store.put_if("lease", b"mine again", tag)
    assert store.get("lease") == b"theirs"
    assert not store.put_if("never written", b"x", tag)
    assert store.list() == ["lease"]


@pytest.mark.parametrize("fresh", [True, False])
def test_one_of_many_writers_wins(store: Store, fresh: bool):
    writers = 6
    with ThreadPoolExecutor(writers) as pool:
        for round_ in range(5):
            key, start = f"contested-{round_}", Barrier(writers)
            if not fresh:
                store.put(key, b"old")
            _, tag = store.get_tagged(key) or (b"", "")

            def write(i: int, key=key, start=start, tag=tag) -> bool:
                start.wait()
                return store.put_new(key, b"%d" % i * 10000) if fresh else store.put_if(key, b"%d" % i * 10000, tag)

            won = list(pool.map(write, range(writers)))
            assert won.count(True) == 1
            assert store.get(key) == b"%d" % won.index(True) * 10000


def test_stores_travel_to_other_processes(store: Store):
    store.put("key", b"value")
    assert pickle.loads(pickle.dumps(store)).get("key") == b"value"


def test_probe_passes_where_conditional_writes_work(store: Store):
    probe(store)
    assert store.list() == []


@pytest.mark.usefixtures("s3")
def test_probe_tells_what_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"store .*/file/folder cannot be written"):
        probe(open_store(tmp_path / "file" / "folder"))
    with pytest.raises(StoreError, match=r"cannot be written.*no bucket 'nowhere'"):
        probe(open_store("s3://nowhere/at/all"))


def test_probe_tells_a_store_that_ignores_conditions(tmp_path: Path):
    class Careless(FolderStore):
        def put_new(self, key: str, data: bytes) -> bool:
            self.put(key, data)
            return True

    probe(Careless(tmp_path), conditional=False)
    with pytest.raises(StoreError, match="lacks conditional writes: 6 of 6"):
        probe(Careless(tmp_path))


@pytest.mark.parametrize(("uri", "rule"), [("ours://bucket", "'ours' is not known"), ("s3://", "names no bucket")])
def test_a_wrong_uri_is_named(uri: str, rule: str):
    with pytest.raises(StoreError, match=rule):
        open_store(uri)


def test_a_killed_writer_leaves_no_object(tmp_path: Path):
    code = f"from blip.storage import open_store; open_store({str(tmp_path)!r}).put_file('big', '/dev/zero')"
    writer = subprocess.Popen([sys.executable, "-c", code])
    while not any(f.stat().st_size for f in tmp_path.iterdir()):
        assert writer.poll() is None
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert open_store(tmp_path).list() == []


def behind(s3: str) -> S3Store:
    return S3Store(f"{s3}/behind", attempts=4, timeout=0.5)


@pytest.mark.parametrize(
    "faults", [["503"], ["429", "reset"], ["refused"] * 2, ["truncated"] * 2, ["stalled"], ["slow"]]
)
def test_reading_survives(proxy, s3: str, tmp_path: Path, faults: list[str]):
    store, data = behind(s3), os.urandom(300_000)
    store.put("object", data)
    proxy.fail("GET", *faults)
    assert store.get("object") == data
    proxy.fail("GET", *faults)
    assert store.read("object", 1000, 250_000) == data[1000:251_000]
    proxy.fail("GET", *faults)
    store.fetch("object", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert not proxy.faults


@pytest.mark.parametrize("faults", [["503"], ["429", "refused"], ["lost", "lost"]])
def test_writing_survives(proxy, s3: str, tmp_path: Path, faults: list[str]):
    store = behind(s3)
    (tmp_path / "file").write_bytes(b"file")
    proxy.fail("PUT", *faults)
    store.put("object", b"data")
    proxy.fail("PUT", *faults)
    store.put_file("file", tmp_path / "file")
    assert (store.get("object"), store.get("file")) == (b"data", b"file")
    assert not proxy.faults


def test_a_writer_whose_answer_was_lost_knows_that_it_won(proxy, s3: str):
    store = behind(s3)
    proxy.fail("PUT", "lost")
    assert store.put_new("lease", b"mine")
    _, tag = store.get_tagged("lease") or (b"", "")
    proxy.fail("PUT", "lost", "lost")
    assert store.put_if("lease", b"mine, longer", tag)
    assert store.get("lease") == b"mine, longer"
    assert not store.put_new("lease", b"mine, longer")
    assert not proxy.faults


def test_no_write_relies_on_a_listing(proxy, s3: str):
    store = behind(s3)
    assert store.list() == []
    assert store.put_new("commit", b"first")
    proxy.fail("GET", "stale")
    assert store.list() == []
    assert not store.put_new("commit", b"second")
    assert store.list() == ["commit"]


def test_a_server_that_stays_away_is_named(monkeypatch: pytest.MonkeyPatch, s3: str):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=f"{s3}/key: Could not connect"):
        S3Store(s3, attempts=2).get("key")


def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: str) -> None:
    (tmp_path / "config").write_text(f"[profile mine]\nregion = us-east-1\ns3 =\n    addressing_style = {style}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "mine")


@pytest.mark.parametrize(
    ("style", "address"), [("virtual", "http://bucket.s3.example:9000/a"), ("path", "http://s3.example:9000/bucket/a")]
)
def test_the_profile_says_how_a_bucket_is_addressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: str, address: str
):
    profile(tmp_path, monkeypatch, style)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.example:9000")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    url = s3_client(1.0, "bucket").generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "a"})
    assert url.partition("?")[0] == address


def test_a_profile_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match=r"s3://bucket/key: .*\(nobody\)"):
        S3Store("s3://bucket").get("key")


@pytest.mark.parametrize("setting", ["1", "other,{bucket}"])
def test_a_public_bucket_is_read_without_keys(s3: str, monkeypatch: pytest.MonkeyPatch, setting: str):
    bucket = s3.removeprefix("s3://")
    s3_client(1.0, bucket).put_object(Bucket=bucket, Key="key", Body=b"data", ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(StoreError, match="AWS_NO_SIGN_REQUEST=1 for a public bucket"):
        S3Store(s3).get("key")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", setting.format(bucket=bucket))
    assert S3Store(s3).get("key") == b"data"
