"""One set of own data becomes splits by how images look, the same after a kill, and without copies of tars."""

import io
import json
import multiprocessing
import tarfile
import time
from pathlib import Path

import boto3
import numpy as np
import pytest
from PIL import Image
from tiny_models import TEXTS, picture

from blip.capfilt.duplicates import near_groups
from blip.config import ConfigError
from blip.runs.context import RunContext
from blip.runs.found import with_source
from blip.runs.ingest import ingest
from blip.runs.shares import assign, parse_split
from blip.shards.manifest import Manifest
from blip.shards.reading import samples
from blip.storage import StoreError, open_store

SAVED = Path(__file__).parents[1] / "datasets" / "saved_splits"


def run(folder: Path, *sources: Path | str, settings: tuple[str, ...] = (), name: str = "data"):
    context = RunContext(preset="shapes", store=str(folder / "store"), overrides=settings)
    return ingest(context, list(map(str, sources)), out=folder / name)


def manifests(folder: Path, name: str = "data") -> dict[str, Manifest]:
    return {path.stem: Manifest.load(path) for path in sorted((folder / name).glob("*.json"))}


def drawing(i: int) -> Image.Image:
    """Returns a picture of 64 x 64 that looks like no other."""
    blocks = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((64, 64), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def photos(folder: Path, count: int) -> Path:
    """Writes pictures three times each: as PNG, as a poor JPEG, and smaller."""
    folder.mkdir()
    for i in range(count):
        image = drawing(i)
        for name, data in (
            (f"{i:03d}.png", encoded(image, format="PNG")),
            (f"{i:03d}-again.jpg", encoded(image, format="JPEG", quality=40)),
            (f"z{count - i:03d}.PNG", encoded(image.resize((48, 48)), format="PNG")),
        ):
            (folder / name).write_bytes(data)
            (folder / name).with_suffix(".txt").write_text(f"{TEXTS[i % len(TEXTS)]} of picture {i}")
    return folder


def pictures_of(manifest: Manifest) -> list[int]:
    return [int(text.rpartition(" ")[2]) for sample in samples(manifest) for text in sample.texts]


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("0.9/0.1", {"train": 0.9, "test": 0.1}),
        ("90/10", {"train": 0.9, "test": 0.1}),
        ("20%/70%/10%", {"gold": 0.2, "web": 0.7, "test": 0.1}),
        ("test=.25/web=.75", {"test": 0.25, "web": 0.75}),
        ("train=0.8/val=0.1/test=0.1", {"train": 0.8, "val": 0.1, "test": 0.1}),
    ],
)
def test_shares_are_by_position_or_name(text: str, shares: dict[str, float]):
    assert parse_split(text) == pytest.approx(shares)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("0.9/0.2", "the shares make 1.1; they must"),
        ("1.0/0", "each be above 0"),
        ("0.9", "give two shares"),
        ("a/b", "write shares as 0.9/0.1"),
        ("gold=0.5/0.5", "give two shares"),
        ("dev=0.5/test=0.5", "names of train, gold, web, val, test"),
        ("gold=0.5/web=0.5", "a share for test"),
        ("train=0.5/gold=0.4/test=0.1", "train is gold and web at once"),
    ],
)
def test_wrong_shares_are_refused(text: str, rule: str):
    with pytest.raises(ConfigError, match=rule):
        parse_split(text)


def test_groups_are_chains_of_close_hashes_in_any_order():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 500, dtype=np.uint64)
    chain = [base]
    for _ in range(3):  # each within 4 bits of the last, the ends within 12 of each other
        flipped = chain[-1].copy()
        for bit in range(4):
            flipped ^= np.uint64(1) << rng.integers(16 * bit, 16 * bit + 16, len(base), dtype=np.uint64)
        chain.append(flipped)
    hashes = np.concatenate(chain)
    groups = near_groups(hashes, 4).reshape(4, -1)
    assert (groups == groups[0]).all()
    assert len(np.unique(groups)) == 500
    order = rng.permutation(len(hashes))
    assert (near_groups(hashes[order], 4) == groups.reshape(-1)[order]).all()
    alike = rng.integers(0, 2**12, 30_000, dtype=np.uint64)  # all pairs are close
    assert len(np.unique(near_groups(alike, 4))) == 1


def test_shares_are_kept_whatever_the_order():
    hashes = np.random.default_rng(1).integers(0, 2**63, 2000, dtype=np.uint64)
    shares = {"gold": 0.2, "web": 0.7, "test": 0.1}
    found = assign(hashes, shares)
    assert np.bincount(found).tolist() == [400, 1400, 200]
    order = np.random.default_rng(2).permutation(len(hashes))
    assert (assign(hashes[order], shares) == found[order]).all()
    more = assign(np.concatenate([hashes, hashes[:100] ^ np.uint64(0x5555555555555555)]), shares)[:2000]
    assert (more == found).mean() > 0.97  # what is there stays where it is
    assert sorted(assign(hashes[:3], shares)) == [0, 1, 2]  # each has one
    with pytest.raises(ConfigError, match=r"5 images cannot be split in 3: 2 of them look different"):
        assign(hashes[[0, 0, 0, 1, 1]], shares)


def test_images_that_look_alike_stay_together(tmp_path: Path):
    folder = photos(tmp_path / "photos", 30)
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "silent.png").write_bytes(picture(99))
    result = run(tmp_path, folder, settings=("data.split=0.8/0.2",))
    assert {name: split.samples for name, split in result.splits.items()} == {"gold": 72, "web": 72, "test": 18}
    assert result.splits["web"].counts == {"image cannot be decoded": 1, "no text": 1}
    assert result.splits["gold"].counts == result.splits["test"].counts == {}
    made = manifests(tmp_path)
    train, test = set(pictures_of(made["web"])), pictures_of(made["test"])
    assert not train & set(test)
    assert len(test) == 3 * len(set(test))
    three = run(tmp_path, folder, settings=("data.split=gold=0.2/web=0.6/test=0.2",), name="three")
    assert [three.splits[name].samples for name in ("gold", "web", "test")] == [18, 54, 18]
    assert set(pictures_of(manifests(tmp_path, "three")["test"])) == set(test)  # the cut at 0.8 is the same


def test_one_colour_is_not_one_picture(tmp_path: Path):
    (tmp_path / "flags").mkdir()
    for i in range(10):
        (tmp_path / "flags" / f"{i}.png").write_bytes(encoded(Image.new("RGB", (32, 32), (25 * i, 0, 0)), format="PNG"))
        (tmp_path / "flags" / f"{i}.txt").write_text(f"{TEXTS[0]} {i}")
    result = run(tmp_path, tmp_path / "flags")
    assert (result.splits["web"].samples, result.splits["test"].samples) == (9, 1)


def test_splits_of_the_datas_own_are_kept_unless_others_are_asked_for(tmp_path: Path):
    result = run(tmp_path, SAVED)
    assert [result.splits[name].samples for name in ("gold", "web", "test")] == [4, 4, 2]
    assert {text for sample in samples(manifests(tmp_path)["test"]) for text in sample.texts} == {
        "a drawing 4",
        "a drawing 5",
        "shape 4",
        "shape 5",
    }
    anew = run(tmp_path, SAVED, settings=("data.split=0.5/0.5",), name="anew")
    assert [anew.splits[name].samples for name in ("web", "test")] == [3, 3]


def test_tars_of_one_set_are_split_where_they_lie(tmp_path: Path):
    (tmp_path / "web").mkdir()
    for shard in range(3):
        with tarfile.open(tmp_path / "web" / f"{shard}.tar", "w") as tar:
            for i in range(8):
                number = (8 * shard + i) % 20  # four pictures come twice, in different tars
                for ending, data in (("png", encoded(drawing(number), format="PNG")), ("txt", f"a {number}".encode())):
                    member = tarfile.TarInfo(f"{i:04d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (tmp_path / "web" / "0.json").write_text("{}")
    result = run(tmp_path, tmp_path / "web", settings=("data.split=0.7/0.3",))
    found = manifests(tmp_path)
    assert {shard.name for name in ("web", "test") for shard in found[name].shards} <= {"0.tar", "1.tar", "2.tar"}
    assert found["web"].root == str(tmp_path / "web")
    train, test = pictures_of(found["web"]), pictures_of(found["test"])
    assert len(train) + len(test) == 24
    assert not set(train) & set(test)
    assert 6 <= len(test) <= 9
    assert not list((tmp_path / "store").rglob("*.tar"))
    assert run(tmp_path, tmp_path / "web", settings=("data.split=0.7/0.3",), name="again").splits == result.splits
    with pytest.raises(ConfigError, match=r"split is 0\.9/0\.1, which divides one set, but gold or test is set"):
        run(tmp_path, tmp_path / "web", settings=("data.split=0.9/0.1", "data.test=x", "data.gold=x"))


def test_a_killed_ingestion_goes_on_and_writes_the_same_bytes(tmp_path: Path):
    folder = photos(tmp_path / "photos", 100)
    settings = ("per_shard=15",)
    run(tmp_path / "whole", folder, settings=settings)
    store = tmp_path / "killed" / "store"
    fork = multiprocessing.get_context("fork")  # the imports take longer than the work
    for sign in ("verdicts-000000.json", "train-000002.json"):  # while it looks, and while it writes
        process = fork.Process(target=run, args=(tmp_path / "killed", folder), kwargs={"settings": settings})
        process.start()
        while not list(store.rglob(sign)):
            assert process.is_alive(), "the ingestion ended before it was killed"
            time.sleep(0.002)
        process.kill()
        process.join()
    assert not (tmp_path / "killed" / "data" / "web.json").exists()
    written = {path: path.stat().st_mtime_ns for path in store.rglob("train-00000[01]-*.tar")}
    assert len(written) == 2
    run(tmp_path / "killed", folder, settings=settings)
    assert {path: path.stat().st_mtime_ns for path in written} == written  # these are not written again
    whole, killed = open_store(tmp_path / "whole"), open_store(tmp_path / "killed")
    tars = [key for key in whole.list() if key.endswith((".tar", ".idx.jsonl"))]
    assert len(tars) > 20
    assert tars == [key for key in killed.list() if key.endswith((".tar", ".idx.jsonl"))]
    assert all(whole.get(key) == killed.get(key) for key in tars)
    for name in ("gold", "web", "test"):
        one, other = (json.loads(store.get(f"data/{name}.json")) for store in (whole, killed))
        assert one | {"root": ""} == other | {"root": ""}


def test_what_changed_is_read_anew(tmp_path: Path):
    folder = photos(tmp_path / "photos", 4)
    first = run(tmp_path, folder)
    (folder / "000.txt").write_text("another text of picture 0")
    second = run(tmp_path, folder)
    assert first.splits["web"].digest != second.splits["web"].digest or (
        first.splits["test"].digest != second.splits["test"].digest
    )


@pytest.mark.parametrize("option", ["out", "store"])
def test_what_is_written_lies_apart_from_what_is_read(option: str, tmp_path: Path):
    folder = photos(tmp_path / "photos", 4)
    places = {"out": tmp_path / "data", "store": tmp_path / "store", option: folder / "below"}
    context = RunContext(preset="shapes", store=str(places["store"]))
    with pytest.raises(ConfigError, match=f"--{option} .*: lies in .*photos, whose files are read"):
        ingest(context, str(folder), out=places["out"])


def test_the_source_says_what_it_needs(tmp_path: Path):
    folder = photos(tmp_path / "photos", 2)
    assert with_source(str(folder), ["data.split=0.5/0.5"]) == [
        "data.type=files",
        "data.split=0.5/0.5",
        f'data.path="{folder}"',
    ]
    with pytest.raises(ConfigError, match=r"data\.gold says where tars lie, but the source is shapes: say source=tars"):
        with_source("shapes", ["data.gold=x"])
    assert with_source("shapes", ["data.type=tars", "data.gold=x"])[0] == "data.type=shapes"  # the last one holds
    with pytest.raises(ConfigError, match=r"data\.gold goes with tars .*: name all sources together.*data\.split"):
        with_source(str(folder), ["data.gold=x"])
    with pytest.raises(ConfigError, match=r"6 of 6 images have no text .*set data\.text_extension, data\.text_field"):
        run(tmp_path, folder, settings=("data.text_extension=cap",))


def test_a_public_bucket_is_read_without_keys_by_all_steps(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bucket = boto3.resource("s3").Bucket(s3.removeprefix("s3://"))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for i in range(10):
            for ending, data in (("png", encoded(drawing(i), format="PNG")), ("txt", f"a {i}".encode())):
                member = tarfile.TarInfo(f"{i:04d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    bucket.put_object(Key="web/0.tar", Body=file.getvalue(), ACL="public-read")
    bucket.put_object(Key="photos/0.png", Body=encoded(drawing(0), format="PNG"), ACL="public-read")
    bucket.put_object(Key="photos/1.png", Body=encoded(drawing(1), format="PNG"), ACL="public-read")
    bucket.put_object(Key="photos/t.csv", Body=b"image,text\n0.png,one\n1.png,two\n", ACL="public-read")
    with monkeypatch.context() as without_keys:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            without_keys.delenv(name)
        without_keys.setenv("AWS_EC2_METADATA_DISABLED", "true")
        without_keys.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        without_keys.setenv("AWS_NO_SIGN_REQUEST", "")
        with pytest.raises(StoreError, match=r"data\.anonymous=true for own data"):
            run(tmp_path, f"{s3}/web")
        result = run(tmp_path, f"{s3}/web", settings=("data.anonymous=true",))
        assert (result.splits["web"].samples, result.splits["test"].samples) == (9, 1)
        run(tmp_path, f"{s3}/photos", settings=("data.anonymous=true",), name="photos")
        without_keys.setenv("AWS_NO_SIGN_REQUEST", "")  # a later step knows the manifest alone
        assert len(list(samples(manifests(tmp_path)["web"]))) == 9
