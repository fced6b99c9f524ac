"""Shards are written once, verified, and read, including those of other tools."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import webdataset

from blip.config import ConfigError
from blip.shards.discover import discover
from blip.shards.manifest import Manifest
from blip.shards.reading import read_shard
from blip.shards.sample import Sample
from blip.shards.verification import ShardError
from blip.shards.writing import write_shards
from blip.storage import open_store


def pairs(count: int) -> list[Sample]:
    return [Sample(f"{i:08d}", [b"image %d" % i], [f"text {i}"], {"truth": i}) for i in range(count)]


def read(manifest: Manifest, rejected: Counter[str] | None = None) -> list[Sample]:
    return [sample for shard in manifest.shards for sample in read_shard(manifest.store, shard, rejected)]


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "data") if request.param == "folder" else f"{request.getfixturevalue('s3')}/data"


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_samples_of_every_kind_come_back(root: str):
    samples = [
        Sample("one", [b"image"], ["a text"], {"licence": "CC0", "é": None}, "jpg"),
        Sample("folder/many-texts", [b"image"], ["first", "second"], {}, "png"),
        Sample("no-text", [b"image"], [], {}, "webp"),
        Sample("two-images", [b"left", b"right"], ["same"], {"answer": "no"}, "png"),
        Sample("frames", [b"%d" % i for i in range(12)], ["moves"], {}, "jpg"),
        Sample("ünïcode-" + "x" * 200, [b"image"], ["日本"], {}, "png"),
    ]
    manifest = write_shards(samples, root, "all", per_shard=4)
    assert [shard.samples for shard in manifest.shards] == [4, 2]
    assert read(manifest) == samples


def test_the_same_samples_give_the_same_shards(tmp_path: Path):
    one, two = (
        write_shards(pairs(25), tmp_path / folder, "web", 10, parents=["p"], revision="r") for folder in ("one", "two")
    )
    assert one.digest == two.digest
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert len(files) == 6
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)


def test_other_samples_do_not_overwrite(tmp_path: Path):
    first = write_shards(pairs(5), tmp_path, "web")
    write_shards(pairs(6), tmp_path, "web")
    assert read(first) == pairs(5)


def test_counts_may_grow_while_samples_are_written(tmp_path: Path):
    counts = Counter()

    def counting():
        for sample in pairs(3):
            counts["seen"] += 1
            yield sample

    assert write_shards(counting(), tmp_path, "web", counts=counts).counts == {"seen": 3}


def test_plain_webdataset_reads_our_shards(tmp_path: Path):
    manifest = write_shards(pairs(3), tmp_path, "web")
    seen = list(webdataset.WebDataset(str(tmp_path / manifest.shards[0].name), shardshuffle=False))
    assert [(s["__key__"], s["png"], s["txt"]) for s in seen] == [
        (f"{i:08d}", b"image %d" % i, b"text %d" % i) for i in range(3)
    ]
    assert json.loads(seen[2]["json"]) == {"truth": 2}


@pytest.mark.parametrize("key", ["a.b", "twice", "", "a/"])
def test_a_key_that_would_lose_samples_is_refused(tmp_path: Path, key: str):
    with pytest.raises(ValueError, match=f"key '{key}'"):
        write_shards([Sample("twice", [b"i"], []), Sample(key, [b"i"], [])], tmp_path, "web")


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda path, _: path.unlink(), "is missing"),
        (
            lambda path, data: path.write_bytes(data[: len(data) // 2]),
            "is cut short: 5120 bytes where the manifest says 10240",
        ),
        (lambda path, data: path.write_bytes(data.replace(b"image 1", b"image 7")), "was altered: its sha256 is"),
        (lambda path, data: path.write_bytes(data + b"\0"), "is too long"),
    ],
)
def test_a_harmed_shard_is_named_with_its_digest(tmp_path: Path, harm, what: str):
    manifest = write_shards(pairs(2), tmp_path, "web")
    (shard,) = manifest.shards
    path = tmp_path / shard.name
    harm(path, path.read_bytes())
    with pytest.raises(ShardError, match=what) as error:
        read(manifest)
    assert f"{tmp_path}/{shard.name}" in str(error.value)
    assert shard.sha256 in str(error.value)


def test_a_shard_missing_from_a_bucket_is_named(s3: str):
    manifest = write_shards(pairs(2), s3, "web")
    manifest.store.delete(manifest.shards[0].name)
    with pytest.raises(
        ShardError, match=f"shard {s3}/{manifest.shards[0].name} is missing.*{manifest.shards[0].sha256}"
    ):
        read(manifest)


def test_a_lost_or_wrong_index_is_made_again(tmp_path: Path):
    manifest = write_shards(pairs(4), tmp_path, "web", per_shard=2)
    first, second = sorted(tmp_path.glob("*.idx.jsonl"))
    first.unlink()
    second.write_bytes(b"")
    assert read(manifest) == pairs(4)


IMG2DATASET = [
    ("000000000.jpg", b"a"),
    ("000000000.txt", b"a dog"),
    ("000000000.json", b'{"url": "http://x", "caption": "a dog", "key": "000000000"}'),
    ("000000001.webp", b"b"),
    ("000000001.txt", "ein Bär".encode()),
]
BAD = [
    ("000000002.txt", b"no image here"),
    ("000000003.jpg", b"c"),
    ("000000003.txt", b"  \n"),
    ("000000004.jpg", b"d"),
    ("000000004.txt", b"\xff\xfe"),
    ("000000005.jpg", b"e"),
    ("000000005.json", b"{"),
    ("000000000.jpg", b"the first one's key again"),
    ("README", b""),
    ("000000006.JPG", b"f"),
    ("000000006.txt", b"upper case"),
]


@pytest.mark.parametrize("name", ["{00000..00001}.tar", "", "/", "/0000", "/{00000,00001}.tar"])
@pytest.mark.parametrize("where", ["folder", "s3"])
def test_others_tars_are_found_and_read(tmp_path: Path, request: pytest.FixtureRequest, where: str, name: str):
    write_tar(tmp_path / "laion" / "00000.tar", IMG2DATASET)
    write_tar(tmp_path / "laion" / "00001.tar", IMG2DATASET[3:])
    (tmp_path / "laion" / "00000_stats.json").write_text("{}")
    (tmp_path / "laion" / "00000.parquet").write_text("")
    root = str(tmp_path / "laion")
    if where == "s3":
        root = f"{request.getfixturevalue('s3')}/laion"
        for path in (tmp_path / "laion").iterdir():
            open_store(root).put_file(path.name, path)
    manifest = discover(f"{root}/{name.lstrip('/')}" if name else root)
    assert (manifest.name, [s.name for s in manifest.shards]) == ("laion", ["00000.tar", "00001.tar"])
    samples = read(manifest)
    assert [(s.key, s.images, s.texts, s.image_ext) for s in samples[:2]] == [
        ("000000000", [b"a"], ["a dog"], "jpg"),
        ("000000001", [b"b"], ["ein Bär"], "webp"),
    ]
    assert samples[0].meta["url"] == "http://x"
    assert len(samples) == manifest.samples == 3


def test_a_manifest_or_one_tar_is_found_too(tmp_path: Path):
    write_tar(tmp_path / "00000.tar", IMG2DATASET)
    manifest = discover(tmp_path / "00000.tar")
    manifest.save(tmp_path / "web.json")
    assert discover(f"{tmp_path}/web.json") == manifest


def test_bad_samples_are_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_tar(tmp_path / "00000.tar", IMG2DATASET + BAD)
    manifest, rejected = discover(tmp_path), Counter()
    headers = {"no image": 1, "key twice in a shard": 1, "member without key and extension": 1}
    assert manifest.counts == {**headers, "empty text": 1, "text is not UTF-8": 1, "json cannot be decoded": 1}
    assert [sample.key for sample in read(manifest, rejected)] == ["000000000", "000000001", "000000006"]
    assert rejected == {**headers, "empty text": 1, "text is not UTF-8": 1, "json cannot be decoded": 1}
    assert "1 (empty text)" in caplog.text


def test_others_tars_that_cannot_be_read_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no \.tar below"):
        discover(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="is not a brace pattern"):
        discover(tmp_path / "{00000..00003.tar")
    write_tar(tmp_path / "00000.tar", IMG2DATASET)
    with pytest.raises(ShardError, match=r"00001\.tar is missing"):
        discover(tmp_path / "{00000..00001}.tar")
    whole = (tmp_path / "00000.tar").read_bytes()
    for cut in (1024, 1100, 700):  # between two members, inside a header, inside a body
        (tmp_path / "00000.tar").write_bytes(whole[:cut])
        with pytest.raises(ShardError, match=r"00000\.tar cannot be read as a tar"):
            discover(tmp_path)


def test_a_shard_is_read_through_failures(proxy, s3: str):
    manifest = write_shards(pairs(40), f"{s3}/data", "web")
    for fault in ("reset", "truncated"):
        proxy.fail("GET", fault)
        assert read(manifest) == pairs(40)
    assert not proxy.faults
