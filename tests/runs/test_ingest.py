"""Ingestion uses what it can, counts the rest by reason, and refuses sources that it does not understand."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from tiny_models import picture

from blip.config import ConfigError
from blip.results import IngestResult
from blip.runs.context import RunContext
from blip.runs.ingest import ingest
from blip.shards.discover import Limits, discover
from blip.shards.manifest import Layout, Manifest
from blip.shards.reading import samples
from blip.shards.sources import find_tars
from blip.shards.verification import ShardError


def tar(path: Path, *members: tuple[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def pairs(count: int = 4, *, text: str = "txt", start: int = 0) -> list[tuple[str, bytes]]:
    caption = {
        "txt": "a dog %d",
        "caption": "a dog %d",
        "json": '{"caption": "a dog %d"}',
        "alt.json": '{"alt": "a dog %d"}',
    }[text]
    extension = text.rpartition(".")[2]
    return [
        member
        for i in range(start, start + count)
        for member in ((f"{i:04d}.png", picture(i)), (f"{i:04d}.{extension}", (caption % i).encode()))
    ]


def run(folder: Path, source: str, *overrides: str) -> IngestResult:
    context = RunContext(preset="shapes", overrides=overrides, store=str(folder / "store"))
    return ingest(context, source, out=folder / "data")


def test_a_folder_of_tars_is_taken_for_web_pairs(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for split in ("gold", "web #1", "test"):
        tar(tmp_path / split / "0.tar", *pairs(), ("README", b"x"))
    with pytest.raises(ConfigError, match=r"set data\.test=\.\.\. to where"):
        run(tmp_path, str(tmp_path / "web #1"), f"data.gold={tmp_path / 'gold'}")
    others = [f"data.{split}={tmp_path / split}" for split in ("gold", "test")]
    for source in (
        tmp_path / "web #1",
        tmp_path / "web #1" / "*.tar",
        tmp_path / "web #1" / "{0,0}.tar",
        tmp_path / "web",
    ):
        made = run(tmp_path, str(source), *others)
        assert made.splits["web"].samples == 4
        assert made.splits["web"].counts == {"member without key and extension": 1}
    assert "1 (member without key and extension)" in caplog.text


def test_the_vocabulary_of_tars_is_not_that_of_shapes(tmp_path: Path):
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    for split in ("gold", "web", "test"):
        tar(tmp_path / split / "0.tar", *pairs(), ("z.png", picture(9)), ("z.txt", letters.encode()))
    made = run(tmp_path, "tars", *[f"data.{split}={tmp_path / split}" for split in ("gold", "web", "test")])
    assert made.vocabulary > 256


@pytest.mark.parametrize(("members", "why"), [([], "nothing"), ([(".DS_Store", b"x")], "hidden member")])
def test_a_split_without_a_sample_is_refused(tmp_path: Path, members: list[tuple[str, bytes]], why: str):
    for split in ("web", "test"):
        tar(tmp_path / split / "0.tar", *pairs())
    tar(tmp_path / "gold" / "0.tar", *members)
    splits = [f"data.{split}={tmp_path / split}" for split in ("gold", "web", "test")]
    with pytest.raises(ConfigError, match=rf"^data\.gold: no sample is in the 1 tars of .*gold \(left out: .*{why}"):
        run(tmp_path, "tars", *splits)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("shape", "did you mean shapes"),
        ("papers", r"papers: holds no data that are known \(there are 1 \.pdf\); name images with a table"),
        ("nothing", "nothing: nothing is there"),
        ("{0..9999999999}.tar", "names 10,000,000,000 tars"),
        ("{a,b}{0..99999}{0..99999}.tar", "names 20,000,000,000 tars"),
        ("{x", "is not a brace pattern"),
        ("{x}.tar", "braces have no"),
        ("", "is empty"),
        (" ", "is empty"),
    ],
)
def test_a_source_that_is_not_understood_is_refused_with_what_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "1.pdf").touch()
    with pytest.raises(ConfigError, match=said) as error:
        run(tmp_path, source)
    assert "write shapes for the embedded world" in str(error.value)
    assert "\n" not in str(error.value)


def test_several_places_are_one_data_set(tmp_path: Path):
    for place, start in (("a/0.tar", 0), ("a/1.tar", 4), ("b/c/0.tar", 8)):
        tar(tmp_path / place, *pairs(start=start))
    manifest = discover([str(tmp_path / "a" / "?.tar"), f"{tmp_path}/b/{{c,c}}/*.tar"], "web")
    assert (manifest.root, [shard.name for shard in manifest.shards]) == (
        str(tmp_path),
        ["a/0.tar", "a/1.tar", "b/c/0.tar"],
    )
    assert [sample.key for sample in samples(manifest)] == [f"{i:04d}" for i in range(12)]
    store, stamps = find_tars([str(tmp_path / "a" / "[!0].tar")])
    assert (store.uri, list(stamps)) == (str(tmp_path / "a"), ["1.tar"])


def test_sources_in_several_buckets_are_refused(s3: str, tmp_path: Path):
    tar(tmp_path / "a" / "0.tar", *pairs())
    Manifest(name="x", root=s3).store.put_file("0.tar", tmp_path / "a" / "0.tar")
    with pytest.raises(ConfigError, match="are in different stores"):
        discover([str(tmp_path / "a"), s3])


def test_all_broken_tars_are_named_and_a_share_may_be_lost(tmp_path: Path):
    for i in range(8):
        tar(tmp_path / "web" / f"{i}.tar", *pairs())
    tar(tmp_path / "gold" / "0.tar", *pairs())
    (tmp_path / "web" / "2.tar").write_bytes(b"<html>")
    (tmp_path / "web" / "5.tar").write_bytes((tmp_path / "web" / "5.tar").read_bytes()[:700])
    (tmp_path / "web" / "6.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    others = [f"data.gold={tmp_path}/gold", f"data.test={tmp_path}/gold"]
    with pytest.raises(ShardError, match=r"4 of 9 tars cannot be read, more than data\.lost=0 allows") as error:
        run(tmp_path, f"{tmp_path}/web/{{0..8}}.tar", *others)
    assert all(f"{i}.tar" in str(error.value) for i in (2, 5, 6, 8))
    made = run(tmp_path, f"{tmp_path}/web", *others, "data.lost=0.4")
    assert (made.splits["web"].shards, made.splits["web"].counts) == (5, {"tar that cannot be read": 3})


@pytest.mark.parametrize("text", ["txt", "caption", "json"])
def test_captions_are_found_where_people_keep_them(tmp_path: Path, text: str):
    tar(tmp_path / "0.tar", *pairs(text=text))
    assert [sample.texts for sample in samples(discover(tmp_path))] == [[f"a dog {i}"] for i in range(4)]


def test_a_setting_says_where_captions_are(tmp_path: Path):
    tar(tmp_path / "web" / "0.tar", *pairs(text="alt.json"))
    tar(tmp_path / "gold" / "0.tar", *pairs(text="alt.json"))
    splits = ["data.gold=" + str(tmp_path / "gold"), "data.test=" + str(tmp_path / "gold")]
    with pytest.raises(
        ShardError,
        match=r"4 of 4 samples in .* have no text .*: 4 \(no text\); set data\.text_extension or data\.text_field",
    ):
        run(tmp_path, str(tmp_path / "web"), *splits)
    run(tmp_path, str(tmp_path / "web"), *splits, "data.text_field=alt")
    web = Manifest.load(tmp_path / "data" / "web.json")
    assert web.shards[0].layout == Layout(text_field="alt")
    assert [sample.texts for sample in samples(web)] == [[f"a dog {i}"] for i in range(4)]
    made = run(
        tmp_path,
        str(tmp_path / "web"),
        *splits,
        "data.without_text=1",
        "data.text_extension=.CAP",
        "tokenizer=null",
        "vocab_size=64",
    )
    assert made.splits["web"].counts == {"no text": 4}


def test_a_tar_of_which_most_is_of_no_use_ends_the_ingestion(tmp_path: Path):
    tar(tmp_path / "web" / "0.tar", *pairs(2), *[(f"{i}.mp4", b"film") for i in range(9)])
    with pytest.raises(
        ShardError, match=r"0\.tar: 9 \(no image\) and 2 samples: too little can be used; see data\.keys"
    ):
        discover(tmp_path / "web", limits=Limits())


def test_what_was_read_with_other_settings_is_read_again(tmp_path: Path):
    tar(tmp_path / "web" / "0.tar", *pairs(), *[(f"{i:04d}.cap", b"another") for i in range(4)])
    memory = Manifest(name="m", root=str(tmp_path / "memory")).store
    first = discover(tmp_path / "web", memory=memory)
    second = discover(tmp_path / "web", memory=memory, layout=Layout(text_extension="cap"))
    assert [sample.texts[0] for sample in samples(first)] == [f"a dog {i}" for i in range(4)]
    assert {sample.texts[0] for sample in samples(second)} == {"another"}
    assert first == discover(tmp_path / "web", memory=memory)
    assert (
        json.loads((next((tmp_path / "memory").iterdir())).read_text())[0]["shard"]["index_sha256"]
        == first.shards[0].index_sha256
    )
