"""CapFilt of a shard writes one table of scores and copies nothing."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from tiny_models import TEXTS, captioner, picture, samples, text_filter

from blip.capfilt.quality import QualityConfig
from blip.capfilt.shard import ShardCapFilt, ShardConfig
from blip.capfilt.stream import StreamConfig
from blip.capfilt.table import from_parquet
from blip.digest import file_digest
from blip.models.generation import Nucleus
from blip.shards.index import Index
from blip.shards.manifest import Manifest, Shard
from blip.shards.sample import Sample
from blip.shards.verification import ShardError
from blip.shards.writing import write_shards
from blip.workers.worker import Output
from blip.zoo.ours import OurCaptioner, OurFilter

CFG = ShardConfig(
    stream=StreamConfig(batch=4, decoding=Nucleus(min_length=4, max_length=10)), quality=QualityConfig(min_side=16)
)


def shards(folder: Path, *extra: Sample, count: int = 6) -> Manifest:
    return write_shards([*samples(count), *extra], folder / "web", "web", 100)


def bootstrap(manifest: Manifest, out: Path, tally: Counter[str] | None = None, **cfg) -> Output:
    """Scores the first shard of a manifest."""
    cfg = ShardConfig(**{**dict(CFG), **cfg})
    writer = OurCaptioner(captioner(), cfg.stream.decoding) if cfg.variant != "filter" else None
    judges = {"filter": OurFilter(text_filter())} if cfg.variant != "captioner" else {}
    out.mkdir()
    shard = manifest.shards[0]
    process = ShardCapFilt(cfg, writer, judges, manifest.store, "revision-1")
    return process(shard, manifest.store.path(shard.name), out, Counter() if tally is None else tally)


def rows(output: Output, key: str) -> dict[str, list[dict]]:
    """Returns the rows of a sample by source, without the shard's columns."""
    found: dict[str, list[dict]] = {"web": [], "synthetic": []}
    for row in from_parquet(output.file.read_bytes()).to_pylist():
        if row["key"] == key:
            found[row["source"]].append(
                {name: value for name, value in row.items() if name not in ("shard", "members")}
            )
    return found


def test_a_table_holds_what_was_found_out(tmp_path: Path):
    manifest, tally = shards(tmp_path), Counter()
    output = bootstrap(manifest, tmp_path / "out", tally)
    originals = {sample.key: sample for sample in samples(6)}
    assert list((tmp_path / "out").iterdir()) == [output.file]
    assert output.record["samples"] == tally["images"] == tally["web"] == tally["synthetic"] == 6
    assert output.record["revision"] == "revision-1"
    table = from_parquet(output.file.read_bytes())
    assert table["source"].to_pylist() == ["web", "synthetic"] * 6
    assert set(table["shard"].to_pylist()) == {manifest.shards[0].name}
    one = rows(output, "0003")
    assert one["web"][0]["text"] == TEXTS[3]
    assert 0 < one["web"][0]["match"] < 1
    assert -1 <= one["synthetic"][0]["similarity"] <= 1
    assert one["synthetic"][0]["log_probability"] < 0
    assert one["synthetic"][0]["licence"] == "cc0"
    assert one["web"][0]["sha256"] == hashlib.sha256(originals["0003"].images[0]).hexdigest()
    assert sum(one["web"][0]["match"] for one in (rows(output, key) for key in originals)) == pytest.approx(
        tally["web.match"]
    )


def test_the_table_says_where_images_lie(tmp_path: Path):
    manifest = shards(tmp_path)
    output = bootstrap(manifest, tmp_path / "out")
    tar = manifest.store.path(manifest.shards[0].name).read_bytes()
    for row in from_parquet(output.file.read_bytes()).to_pylist():
        members = json.loads(row["members"])
        offset, size = members["png"]
        assert hashlib.sha256(tar[offset : offset + size]).hexdigest() == row["sha256"]
        assert set(members) == {"png", "json"}  # a selection has texts of its own


def test_the_same_shard_gives_the_same_bytes(tmp_path: Path):
    manifest = shards(tmp_path)
    first, second = bootstrap(manifest, tmp_path / "first"), bootstrap(manifest, tmp_path / "second")
    assert first.record == second.record
    assert file_digest(first.file) == file_digest(second.file)


def test_captions_do_not_depend_on_the_shard(tmp_path: Path):
    alone = write_shards(samples(1, start=5), tmp_path / "alone", "web", 1)
    assert rows(bootstrap(alone, tmp_path / "one"), "0005") == rows(
        bootstrap(shards(tmp_path), tmp_path / "out"), "0005"
    )


def test_no_model_reads_what_else_is_known(tmp_path: Path):
    lie = [Sample(s.key, s.images, s.texts, {**s.meta, "shown": "something else"}) for s in samples(6)]
    other = write_shards(lie, tmp_path / "lie", "web", 100)
    assert rows(bootstrap(other, tmp_path / "a"), "0001") == rows(bootstrap(shards(tmp_path), tmp_path / "b"), "0001")


def test_bad_samples_lose_nothing_of_their_shard(tmp_path: Path):
    bad = [
        Sample("broken", [b"no image"], ["a cat"]),
        Sample("cut", [picture(1, (64, 64), format="JPEG")[:900]], ["a cat"], image_ext="jpg"),
        Sample("tiny", [picture(2, (8, 8))], ["a cat"]),
        Sample("silent", [picture(3)], []),
    ]
    output = bootstrap(shards(tmp_path, *bad), tmp_path / "out")
    assert output.record["samples"] == 10
    assert {key: rows(output, key)["web"][0]["faults"].split()[0] for key in ("broken", "cut", "tiny", "silent")} == {
        "broken": "undecodable",
        "cut": "truncated",
        "tiny": "small",
        "silent": "empty",
    }
    assert rows(output, "tiny")["synthetic"] == []
    assert rows(output, "silent")["synthetic"][0]["match"] is not None
    assert rows(output, "0003") == rows(bootstrap(shards(tmp_path / "alone"), tmp_path / "without"), "0003")


def test_images_with_faults_to_skip_are_shown_to_no_model(tmp_path: Path):
    manifest = shards(tmp_path, Sample("tiny", [picture(2, (8, 8))], ["a cat"]))
    assert rows(bootstrap(manifest, tmp_path / "skipped"), "tiny")["web"][0]["match"] is None
    assert rows(bootstrap(manifest, tmp_path / "looked-at", skip=()), "tiny")["web"][0]["match"] is not None


def test_captioner_only_scores_nothing_and_filter_only_writes_nothing(tmp_path: Path):
    manifest = shards(tmp_path)
    written = rows(bootstrap(manifest, tmp_path / "captioner", variant="captioner"), "0000")
    assert written["web"][0]["match"] is None
    assert len(written["synthetic"]) == 1
    filtered = rows(bootstrap(manifest, tmp_path / "filter", variant="filter"), "0000")
    assert filtered["synthetic"] == []
    assert filtered["web"][0]["match"] is not None


def test_texts_of_a_selection_are_the_ones_looked_at(tmp_path: Path):
    manifest = shards(tmp_path)
    key, members, _ = Index(manifest.store.get(manifest.shards[0].name.replace(".tar", ".idx.jsonl")))[2]
    index = Index.of([(key, members, ["what was kept", "and this"])])
    manifest.store.put("some.idx.jsonl", index.lines)
    seen: Shard = manifest.shards[0].model_copy(
        update={"samples": 1, "index": "some.idx.jsonl", "index_sha256": index.digest}
    )
    output = bootstrap(manifest.model_copy(update={"shards": (seen,)}), tmp_path / "out")
    assert output.record["samples"] == 1
    assert [row["text"] for row in rows(output, key)["web"]] == ["what was kept", "and this"]


def test_a_file_that_is_no_tar_is_refused(tmp_path: Path):
    manifest = shards(tmp_path)
    (tmp_path / "web" / "poem.tar").write_bytes(b"not a tar" * 200)
    poem = Shard(name="poem.tar", sha256="0" * 64, bytes=1800, samples=1)
    with pytest.raises(ShardError, match="cannot be read as a tar"):
        bootstrap(manifest.model_copy(update={"shards": (poem,)}), tmp_path / "out")
