"""A shard that went through CapFilt: what came with it is untouched, what was found out stands beside it."""

import hashlib
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from tiny_models import TEXTS, captioner, picture, samples, text_filter

from blip.capfilt.hygiene import HygieneConfig
from blip.capfilt.rules import Matched, SelectionConfig
from blip.capfilt.shard import ShardBootstrap, ShardConfig
from blip.capfilt.stream import StreamConfig
from blip.capfilt.table import from_parquet
from blip.data.index import Index
from blip.data.manifest import Shard
from blip.data.sample import Sample
from blip.data.shards import ShardError, write_shards
from blip.digest import file_digest
from blip.models.generation import Nucleus
from blip.storage import open_store
from blip.workers.worker import Output

MODELS = {"captioner": "c" * 8, "filter": "f" * 8}
CFG = ShardConfig(stream=StreamConfig(batch=4, decoding=Nucleus(min_length=4, max_length=10)), hygiene=HygieneConfig(min_side=16))


def tar(folder: Path, *extra: Sample, count: int = 6) -> Path:
    manifest = write_shards([*samples(count), *extra], folder / "web", "web", 100)
    return folder / "web" / manifest.shards[0].name


def bootstrap(path: Path, out: Path, tally: Counter[str] | None = None, **cfg) -> Output:
    cfg = ShardConfig(**{**dict(CFG), **cfg})
    models = {"both": (captioner(), text_filter()), "captioner": (captioner(), None), "filter": (None, text_filter())}[cfg.variant]
    out.mkdir()
    shard = Shard(name=path.name, sha256=file_digest(path), bytes=path.stat().st_size, samples=number(path))
    return ShardBootstrap(cfg, *models, MODELS, open_store(path.parent))(shard, path, out, Counter() if tally is None else tally)


def number(path: Path) -> int:
    try:
        return len(Index.scan(path, Counter()))
    except tarfile.TarError:
        return 1


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as file:
        return {member.name: file.extractfile(member).read() for member in file}


def found(output: Output, key: str) -> dict:
    return json.loads(members(output.file)[f"{key}.capfilt.json"])


def test_members_are_copied_and_capfilt_stands_beside_them(tmp_path: Path):
    path, tally = tar(tmp_path), Counter()
    output = bootstrap(path, tmp_path / "out", tally)
    before, after = members(path), members(output.file)
    assert {name: data for name, data in after.items() if not name.endswith("capfilt.json")} == before
    assert len(after) == len(before) + 6
    assert output.record["samples"] == tally["images"] == tally["web"] == tally["synthetic"] == 6
    one = found(output, "0003")
    assert one["web"][0]["text"] == TEXTS[3]
    assert 0 < one["web"][0]["match"] < 1
    assert -1 <= one["synthetic"][0]["similarity"] <= 1
    assert one["synthetic"][0]["log_probability"] < 0
    assert one["synthetic"][0]["keep"] == (one["synthetic"][0]["match"] >= 0.5)
    assert (one["captioner"], one["filter"], one["seed"], one["licence"]) == ("c" * 8, "f" * 8, 42, "cc0")
    assert one["decoding"]["top_p"] == 0.9
    assert one["image"]["sha256"] == hashlib.sha256(before["0003.png"]).hexdigest()


def test_the_table_and_the_index_say_the_same(tmp_path: Path):
    output = bootstrap(tar(tmp_path), tmp_path / "out")
    table = from_parquet(output.beside[".parquet"].read_bytes())
    assert table["source"].to_pylist() == ["web", "synthetic"] * 6
    one, rows = found(output, "0002"), table.slice(4, 2).to_pylist()
    assert [row["text"] for row in rows] == [one["web"][0]["text"], one["synthetic"][0]["text"]]
    assert [row["match"] for row in rows] == pytest.approx([one["web"][0]["match"], one["synthetic"][0]["match"]])
    index = Index(output.beside[".idx.jsonl"].read_bytes())
    key, places, *_ = index[2]
    offset, size = places["capfilt.json"]
    assert key == "0002"
    assert json.loads(output.file.read_bytes()[offset : offset + size]) == one


def test_the_same_shard_gives_the_same_bytes(tmp_path: Path):
    path = tar(tmp_path)
    first, second = bootstrap(path, tmp_path / "first"), bootstrap(path, tmp_path / "second")
    assert first.record == second.record
    for one, other in zip([first.file, *first.beside.values()], [second.file, *second.beside.values()], strict=True):
        assert file_digest(one) == file_digest(other)


def test_captions_do_not_depend_on_the_shard(tmp_path: Path):
    (tmp_path / "alone").mkdir()
    alone = write_shards(samples(1, start=5), tmp_path / "alone", "web", 1)
    one = found(bootstrap(tmp_path / "alone" / alone.shards[0].name, tmp_path / "one"), "0005")
    assert one == found(bootstrap(tar(tmp_path), tmp_path / "out"), "0005")


def test_no_model_reads_what_else_is_known(tmp_path: Path):
    lie = [Sample(s.key, s.images, s.texts, {**s.meta, "shown": "something else"}) for s in samples(6)]
    other = write_shards(lie, tmp_path / "lie", "web", 100)
    assert found(bootstrap(tmp_path / "lie" / other.shards[0].name, tmp_path / "a"), "0001") == found(
        bootstrap(tar(tmp_path), tmp_path / "b"), "0001"
    )


def test_bad_samples_lose_nothing_of_their_shard(tmp_path: Path):
    bad = [
        Sample("broken", [b"no image"], ["a cat"]),
        Sample("cut", [picture(1, (64, 64), format="JPEG")[:900]], ["a cat"], image_ext="jpg"),
        Sample("tiny", [picture(2, (8, 8))], ["a cat"]),
        Sample("silent", [picture(3)], []),
    ]
    output = bootstrap(tar(tmp_path, *bad), tmp_path / "out")
    assert output.record["samples"] == 10
    assert {key: found(output, key)["web"][0]["reason"] for key in ("broken", "cut", "tiny", "silent")} == {
        "broken": "undecodable",
        "cut": "truncated",
        "tiny": "small",
        "silent": "empty",
    }
    assert found(output, "tiny")["synthetic"] == []
    assert found(output, "silent")["synthetic"][0]["match"] is not None
    assert members(output.file)["broken.png"] == b"no image"
    assert found(output, "0003") == found(bootstrap(tar(tmp_path), tmp_path / "without"), "0003")


def test_captioner_only_keeps_all_and_filter_only_writes_nothing(tmp_path: Path):
    path = tar(tmp_path)
    written = found(bootstrap(path, tmp_path / "captioner", variant="captioner"), "0000")
    assert written["web"][0]["keep"]
    assert written["web"][0]["match"] is None
    assert written["synthetic"][0]["keep"]
    strict = SelectionConfig(rule=Matched(web=1.0))
    filtered = found(bootstrap(path, tmp_path / "filter", variant="filter", selection=strict), "0000")
    assert filtered["synthetic"] == []
    assert filtered["web"][0]["reason"] == "unmatched"


def test_a_second_round_replaces_what_the_first_said(tmp_path: Path):
    first = bootstrap(tar(tmp_path), tmp_path / "first")
    second = bootstrap(first.file, tmp_path / "second")
    assert members(second.file) == members(first.file)


def test_a_file_that_is_no_tar_is_refused(tmp_path: Path):
    path = tmp_path / "poem.tar"
    path.write_bytes(b"not a tar" * 200)
    with pytest.raises(ShardError, match="cannot be read as a tar"):
        bootstrap(path, tmp_path / "out")
