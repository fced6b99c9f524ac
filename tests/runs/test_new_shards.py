"""New shards are found by digest in a listing; shards of finished runs are not new."""

import json
import time
from pathlib import Path

import pytest

from blip.config import ConfigError
from blip.datasets import shapes
from blip.runs.context import RunContext
from blip.runs.ingest import ingest
from blip.runs.new_shards import find_new_shards, mark_trained, newest
from blip.shards import discover
from blip.shards.manifest import Manifest
from blip.shards.sample import Sample
from blip.shards.writing import write_shards
from blip.storage import open_store


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "data") if request.param == "folder" else f"{request.getfixturevalue('s3')}/data"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records the keys of the tars that are read whole, in order."""
    keys, scan_tar = [], discover.scan_tar

    def noted(store, key, *given):
        keys.append(key)
        return scan_tar(store, key, *given)

    monkeypatch.setattr(discover, "scan_tar", noted)
    return keys


def put(root: str, name: str, text: str) -> None:
    """Writes a tar with one sample and a later time stamp than the last."""
    made = write_shards([Sample("0", [b"image"], [text])], f"{root}/made", "made")
    time.sleep(0.02)
    store = open_store(root)
    store.put(name, store.get(f"made/{made.shards[0].name}"))


def tars(root: str) -> tuple[str, ...]:
    return ("data.type=tars", *(f"data.{split}={root}/{split}/" for split in ("gold", "web", "test")))


def told(root: str, store: str) -> RunContext:
    return RunContext(preset="shapes", overrides=tars(root), store=store, revision="r1")


def seen(root: str, store: str, name: str = "blip"):
    return find_new_shards(told(root, store), name)


def learn(store: str, manifest: Manifest, folder: Path, name: str = "blip") -> None:
    folder.mkdir(exist_ok=True)
    manifest.save(folder / "web.json")
    mark_trained(name, store, str(folder))


def test_what_a_finished_run_has_learnt_from_is_not_new(root, tmp_path, read):
    store = f"{root}/store"
    put(root, "web/0.tar", "zero")
    put(root, "web/1.tar", "one")
    first = seen(root, store)
    assert (first.shards, first.text.splitlines()[0]) == (2, f"new shards in {root}/web/: 2")
    one = Manifest.load(first.manifest)
    assert ([shard.name for shard in one.shards], one.parents, one.revision) == (["0.tar", "1.tar"], (), "r1")

    assert seen(root, store) == first, "a run that did not finish has learnt nothing"
    learn(store, one, tmp_path / "run")
    none = seen(root, store)
    assert (none.manifest, none.shards) == ("", 0)
    assert none.text == f"no new shards in {root}/web/ since manifest {one.digest[:8]}: nothing to do"

    put(root, "web/2.tar", "two")
    more = seen(root, store)
    two = Manifest.load(more.manifest)
    assert more.text == f"new shards in {root}/web/ since manifest {one.digest[:8]}: 1"
    assert more.listed == ("2.tar (1 samples)",)
    assert ([shard.name for shard in two.shards], two.parents) == (["2.tar"], (one.digest,))
    learn(store, two, tmp_path / "run")
    assert seen(root, store).text == f"no new shards in {root}/web/ since manifest {two.digest[:8]}: nothing to do"
    assert read == ["0.tar", "1.tar", "2.tar"], "no tar is read twice"


def test_a_replaced_tar_is_new_and_a_renamed_one_is_not(root, tmp_path, read):
    store = f"{root}/store"
    put(root, "web/0.tar", "zero")
    put(root, "web/1.tar", "one")
    learn(store, Manifest.load(seen(root, store).manifest), tmp_path / "run")
    read.clear()
    put(root, "web/1.tar", "eno")  # as many bytes
    put(root, "web/2.tar", "zero")
    found = Manifest.load(seen(root, store).manifest)
    assert [shard.name for shard in found.shards] == ["1.tar"]
    assert sorted(read) == ["1.tar", "2.tar"]


def test_every_model_has_its_own_memory(tmp_path):
    root, store = str(tmp_path), str(tmp_path / "store")
    put(root, "web/0.tar", "zero")
    learn(store, Manifest.load(seen(root, store, "small").manifest), tmp_path / "run", "small")
    assert (seen(root, store, "small").shards, seen(root, store, "large").shards) == (0, 1)


def test_a_growing_manifest_is_looked_at_without_its_tars(tmp_path):
    store, overrides = (
        str(tmp_path / "store"),
        [*tars(str(tmp_path))[:3], f"data.web={tmp_path}/web.json", "data.test=none"],
    )
    whole = write_shards([Sample(f"{i}", [b"image"], ["text"]) for i in range(4)], tmp_path / "gone", "web", 2)
    whole.model_copy(update={"shards": whole.shards[:1]}).save(tmp_path / "web.json")
    learn(
        store,
        Manifest.load(
            find_new_shards(
                RunContext(preset="shapes", overrides=tuple(overrides), store=store, revision="r1"), "blip"
            ).manifest
        ),
        tmp_path / "run",
    )
    whole.save(tmp_path / "web.json")
    assert (
        Manifest.load(
            find_new_shards(
                RunContext(preset="shapes", overrides=tuple(overrides), store=store, revision="r1"), "blip"
            ).manifest
        ).shards
        == whole.shards[1:]
    )


def test_the_newest_are_those_that_no_other_was_made_after():
    a, b = (Manifest(name=name, root="r") for name in "ab")
    c = Manifest(name="c", root="r", parents=(a.digest,))
    assert newest([]) == []
    assert newest([a, b, c]) == sorted([b.digest, c.digest])


def test_the_world_of_shapes_never_grows(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.type=shapes never has new shards; set ingest\.data\.type=tars"):
        find_new_shards(RunContext(preset="shapes", store=str(tmp_path)), "blip")


def test_a_memory_that_something_else_wrote_is_named(tmp_path):
    root, store = str(tmp_path), str(tmp_path / "store")
    put(root, "web/0.tar", "zero")
    seen(root, store)
    (page,) = (tmp_path / "store" / "read").iterdir()
    page.write_text(json.dumps([{"stamp": "1"}]))
    with pytest.raises(ConfigError, match=rf"read/{page.name}: shard"):
        seen(root, store)


def test_an_ingest_of_what_is_new_holds_it_alone_and_names_its_parent(tmp_path, read):
    root, store = str(tmp_path), str(tmp_path / "store")
    world = shapes.ShapesConfig(gold=4, web=6, test=2)
    for split, samples in (("gold", shapes.gold_samples(world)), ("test", shapes.test_samples(world))):
        write_shards(samples, f"{root}/{split}", split)
    web = [*shapes.web_samples(world)]
    write_shards(web[:4], f"{root}/web", "old")
    ingest(told(root, store), "tars", out=f"{root}/first")
    mark_trained("blip", store, f"{root}/first")
    assert seen(root, store).shards == 0
    assert len(read) == 3, "a look reads no tar that an ingest has read"

    write_shards(web[4:], f"{root}/web", "new")
    result = ingest(told(root, store), seen(root, store).manifest, out=f"{root}/second")
    assert result.splits["web"].samples == 2
    assert len(read) == 4, "nor does the next ingest"
    old, new = (Manifest.load(tmp_path / run / "web.json") for run in ("first", "second"))
    assert new.parents == (old.digest,)
    assert new.root == old.root
