"""Tars for other tools hold whole selected samples, without a manifest or an index."""

import io
import json
from pathlib import Path

import pytest
import webdataset
from PIL import Image
from tiny_models import TEXTS, samples

from blip.config import ConfigError
from blip.runs.write_tars import write_tars
from blip.shards.index import Index
from blip.shards.manifest import Manifest
from blip.shards.sample import Sample
from blip.shards.writing import write_shards


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder whose web split is a selection: five of eight images, one with two texts, one with a new text."""
    manifest = write_shards(samples(8), tmp_path / "shards", "web", 4)
    store = manifest.store
    kept = {"0000": TEXTS[0:1], "0002": ["two", "texts"], "0003": ["another"], "0005": TEXTS[5:6], "0006": TEXTS[6:7]}
    seen = []
    for shard in manifest.shards:
        whole = Index(store.get(shard.name.replace(".tar", ".idx.jsonl")))
        entries = [whole[row] for row in range(len(whole))]
        index = Index.of([(key, members, kept[key]) for key, members, _ in entries if key in kept])
        store.put(f"kept/{shard.name}", index.lines)
        changes = {"samples": len(index), "index": f"kept/{shard.name}", "index_sha256": index.digest}
        seen.append(shard.model_copy(update=changes))
    (tmp_path / "data").mkdir()
    manifest.model_copy(update={"shards": tuple(seen)}).save(tmp_path / "data" / "web.json")
    return tmp_path / "data"


def read(pattern: str) -> list[dict]:
    """Reads the tars of a brace pattern by plain webdataset."""
    return list(webdataset.WebDataset(pattern, shardshuffle=False).decode("pil").to_tuple("png", "txt", "json"))


def test_webdataset_reads_what_was_selected(data: Path, tmp_path: Path):
    made = write_tars(str(data), "web", str(tmp_path / "tars"), 2)
    assert (made.images, made.texts, made.samples, made.tars) == (5, 6, 5, 3)
    assert made.pattern == f"{tmp_path}/tars/web-{{000000..000002}}.tar"
    found = read(made.pattern)
    assert [text for _, text, _ in found] == [TEXTS[0], "two", "another", TEXTS[5], TEXTS[6]]
    assert [known["texts"] for _, _, known in found][1] == ["two", "texts"]
    assert [known["key"] for _, _, known in found] == ["0000", "0002", "0003", "0005", "0006"]
    originals = {sample.key: sample for sample in samples(8)}
    for image, _, known in found:
        assert image.tobytes() == Image.open(io.BytesIO(originals[known["key"]].images[0])).convert("RGB").tobytes()
        assert known["license"] == "cc0"


def test_a_sample_for_each_text(data: Path, tmp_path: Path):
    made = write_tars(str(data), "web", str(tmp_path / "tars"), each_text=True)
    assert (made.images, made.samples, made.tars) == (5, 6, 1)
    found = read(f"{tmp_path}/tars/web-000000.tar")
    assert [text for _, text, _ in found] == [TEXTS[0], "two", "texts", "another", TEXTS[5], TEXTS[6]]
    assert found[1][0].tobytes() == found[2][0].tobytes()


def test_the_same_data_gives_the_same_tars(data: Path, tmp_path: Path):
    for name in ("one", "other"):
        write_tars(str(data), "web", str(tmp_path / name), 2)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


def test_keys_that_begin_again_in_every_shard_are_told_apart(tmp_path: Path):
    shards = [write_shards(samples(2, start), tmp_path / f"{start}", "web", 2) for start in (0, 4)]
    odd = [Sample(key, s.images, s.texts) for key, s in zip(("0000", "0001"), samples(2, 6), strict=True)]
    again = write_shards(odd, shards[0].root, "again", 2)
    both = shards[0].model_copy(update={"shards": (*shards[0].shards, *again.shards)})
    both.save(tmp_path / "web.json")
    made = write_tars(str(tmp_path), "web", str(tmp_path / "tars"))
    assert made.samples == len({json.dumps(known) + text for _, text, known in read(made.pattern)}) == 4


def test_mistakes_are_named_before_anything_is_written(data: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"source 'wob': .*wob\.json does not exist"):
        write_tars(str(data), "wob", str(tmp_path / "tars"))
    write_tars(str(data), "web", str(tmp_path / "tars"))
    with pytest.raises(ConfigError, match=r"has tars already, web-000000.tar among them"):
        write_tars(str(data), "web", str(tmp_path / "tars"))
    assert Manifest.load(data / "web.json").samples == 5


def test_nothing_to_write_is_an_error(data: Path, tmp_path: Path):
    chosen = Manifest.load(data / "web.json")
    chosen.model_copy(update={"shards": (), "counts": {"web.kept": 0}}).save(data / "web.json")
    with pytest.raises(
        ConfigError, match=r"web\.json: there is no sample in it \(web.kept 0\); name data that have some"
    ):
        write_tars(str(data), "web", str(tmp_path / "tars"))
    assert not (tmp_path / "tars").exists()
