"""CapFilt from a data folder to the one that training reads next."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny_models import both, captioner, model_folder, samples, text_filter

from blip.capfilt.job import CapFiltConfig, Job
from blip.config import ConfigError, load, presets
from blip.data.datasets.shapes import ShapesConfig, is_true, web
from blip.data.loader import Loader, LoaderConfig
from blip.data.manifest import Manifest
from blip.data.sample import Sample
from blip.data.shards import ShardError, read_shard, write_shards
from blip.report.capfilt_figures import load_pictures
from blip.runs.capfilt import capfilt, rethreshold
from blip.runs.worker import work
from blip.storage import StoreError, open_store
from blip.tracking import Run
from blip.workers.local_pool import WorkerError, on_this_machine

DECODING = {"type": "nucleus", "min_length": 4, "max_length": 10}
CONFIG = {"stream": {"batch": 4, "decoding": DECODING}, "hygiene": {"min_side": 16}, "lease": {"seconds": 2}, "report": 0.2}


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_TRACKING", "off")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder, two model folders and a preset."""
    data = tmp_path / "data"
    (data / "tokenizer").mkdir(parents=True)
    (data / "tokenizer" / "vocab.txt").write_text("[PAD]")
    write_shards(samples(24), tmp_path / "shards", "web", 6).save(data / "web.json")
    write_shards(samples(3), tmp_path / "shards", "gold", 3).save(data / "gold.json")
    model_folder(captioner(), tmp_path / "captioner")
    model_folder(text_filter(), tmp_path / "filter")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"extends": "shapes", "capfilt": CONFIG}))
    return tmp_path


@contextmanager
def here(uri: str) -> Iterator[Callable[[], bool]]:
    """A worker in this process."""
    work(uri, "here")
    yield lambda: False


@contextmanager
def nowhere(uri: str) -> Iterator[Callable[[], bool]]:
    raise AssertionError(f"nothing is left to do in {uri}")
    yield lambda: False


def run(folder: Path, *overrides: str, out: str = "out", workers=here, **given) -> dict:
    given = {"data": folder / "data", "captioner": folder / "captioner", "filter": folder / "filter", "store": folder / "store", **given}
    paths = {name: None if value is None else str(value) for name, value in given.items()}
    return capfilt(str(folder / "tiny.yaml"), overrides, revision="r", out=str(folder / out), workers=workers, **paths)


def read(manifest: Manifest) -> dict[str, Sample]:
    return {sample.key: sample for shard in manifest.shards for sample in read_shard(manifest.store, shard)}


def decided(folder: Path) -> dict[str, list[str]]:
    """The kept texts that stand in the shards' tables, by sample."""
    import pyarrow.parquet as pq

    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("store/capfilt/*/data/*.parquet")):
        for row in pq.read_table(path).to_pylist():
            if row["match"] >= 0.5:
                found.setdefault(row["key"], []).append(row["text"])
    return found


def test_training_reads_what_was_kept(folder: Path):
    figures = run(folder, page=folder / "page.html")
    manifest, kept = Manifest.load(folder / "out" / "web.json"), decided(folder)
    assert 0 < len(kept) < 24
    assert {key: sample.texts for key, sample in read(manifest).items()} == kept
    originals = {sample.key: sample for sample in samples(24)}
    assert all(sample.images == originals[key].images and sample.meta == originals[key].meta for key, sample in read(manifest).items())
    loader = Loader([manifest], lambda s, _: (s.key, s.texts), list, LoaderConfig(batch=len(kept), streams=1))
    assert dict(next(iter(loader))) == kept
    assert figures["counts"]["images"] == 24
    assert figures["counts"]["images.kept"] == manifest.samples == len(kept)
    assert manifest.parents == (Manifest.load(folder / "data" / "web.json").digest,)
    assert set(manifest.meta) >= {"captioner", "filter", "selection", "job"}


def test_the_folder_is_complete(folder: Path):
    figures = run(folder, page=folder / "page.html")
    out = folder / "out"
    assert (out / "gold.json").read_bytes() == (folder / "data" / "gold.json").read_bytes()
    assert (out / "tokenizer" / "vocab.txt").is_file()
    assert (out / "web.json").read_bytes() == (out / "bootstrapped.json").read_bytes()
    assert json.loads((out / "metrics.json").read_text())["capfilt"] == figures["capfilt"]
    assert sum(figures["scores"]["web"]["unknown"]) == 24
    pictures = load_pictures(out / "pictures.json")
    assert {text.kept for p in pictures for text in p.web} == {True, False}
    originals = {sample.key: sample.images[0] for sample in samples(24)}
    assert all(originals[p.key] == p.image for p in pictures)
    page = (folder / "page.html").read_text()
    assert all(f'alt="{p.key}"' in page for p in pictures[:1])
    assert figures["speed"]["images_per_second"] > 0
    assert sum(figures["speed"]["shares"].values()) == pytest.approx(1)


def test_what_is_done_is_not_done_again(folder: Path):
    first = run(folder)
    again = run(folder, out="again", workers=nowhere)
    assert {name: again[name] for name in ("noise", "capfilt", "counts")} == {name: first[name] for name in ("noise", "capfilt", "counts")}
    assert (folder / "again" / "web.json").read_bytes() == (folder / "out" / "web.json").read_bytes()
    with pytest.raises(AssertionError, match="nothing is left"):
        run(folder, "stream.seed=7", workers=nowhere)
    run(folder, "workers=5", "lease.seconds=9", workers=nowhere)


def test_a_job_leaves_nothing_behind_that_no_commit_names(folder: Path):
    run(folder)
    (home,) = (folder / "store" / "capfilt").iterdir()
    needed = set((home / "data").iterdir())
    (home / "data" / "web-000000-late.tar").write_bytes(b"of an attempt that came second")
    run(folder, out="again", workers=nowhere)
    assert set((home / "data").iterdir()) == needed
    assert len(needed) == 3 * 4


def test_in_a_bucket_workers_find_data_and_models_there(folder: Path, s3: str):
    write_shards(samples(24), f"{s3}/shards", "web", 6).save(folder / "data" / "web.json")
    figures = run(folder, store=f"{s3}/store")
    manifest = Manifest.load(folder / "out" / "web.json")
    assert manifest.root.startswith(f"{s3}/store/capfilt/")
    run(folder, out="local")
    assert read(manifest) == read(Manifest.load(folder / "local" / "web.json"))
    assert figures["counts"]["images"] == 24
    assert any(key.endswith("tokenizer/vocab.txt") for key in open_store(f"{s3}/store/models").list())


class Listener(Run):
    """Hears what a run is told."""

    def __init__(self):
        self.heard: list[dict[str, float]] = []

    def metrics(self, values, step: int = 0) -> None:
        assert step >= 0
        self.heard.append(dict(values))


def test_progress_is_told_of_each_worker_and_of_all(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    listener = Listener()
    monkeypatch.setattr("blip.runs.capfilt.track", lambda *_, **__: nullcontext(listener))
    monkeypatch.setenv("BLIP_PROGRESS", str(tmp_path / "progress"))
    figures = run(folder)
    curves = listener.heard[-2]
    assert curves["capfilt/shards"] == curves["capfilt/here/shards"] == 4
    assert curves["capfilt/images_per_second"] > 0
    assert curves["capfilt/here/images_per_second"] > 0
    assert curves["capfilt/kept_web"] == pytest.approx(figures["capfilt"]["web"]["kept"])
    record = json.loads((tmp_path / "progress").read_text().splitlines()[-1])
    assert (record["done"], record["total"], record["losses"]["shards"]) == (24, 24, 4)


def test_another_threshold_needs_no_model_and_no_image(folder: Path):
    run(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("store/capfilt/*/data/*")}
    (folder / "captioner" / "model.safetensors").unlink()
    (folder / "filter" / "model.safetensors").unlink()
    every = rethreshold(str(folder / "out"), str(folder / "all"), "0")
    assert every["capfilt"]["web"]["kept"] == every["capfilt"]["synthetic"]["kept"] == 1
    assert all(len(sample.texts) == 2 for sample in read(Manifest.load(folder / "all" / "web.json")).values())
    for some in (
        rethreshold(str(folder / "out"), str(folder / "some"), overrides=["selection.rule.web=1.0"]),
        rethreshold(str(folder / "out"), str(folder / "more"), "web=1.0, synthetic=0"),
    ):
        assert some["capfilt"]["web"]["kept"] == 0
        assert some["capfilt"]["synthetic"]["kept"] > 0
    none = rethreshold(str(folder / "out"), str(folder / "none"), "1.0")
    assert Manifest.load(folder / "none" / "web.json").shards == ()
    assert none["counts"]["images.kept"] == 0
    same = rethreshold(str(folder / "none"), str(folder / "same"), "0.5")
    assert same["capfilt"] == json.loads((folder / "out" / "metrics.json").read_text())["capfilt"]
    assert read(Manifest.load(folder / "same" / "web.json")) == read(Manifest.load(folder / "out" / "web.json"))
    assert {path: path.stat().st_mtime_ns for path in folder.glob("store/capfilt/*/data/*")} == before
    for wrong in ("high", "web=high", "wbe=0.5", "1.5"):
        with pytest.raises(ConfigError, match=r"must be a number from 0 to 1|wbe|less than or equal to 1"):
            rethreshold(str(folder / "out"), str(folder / "x"), wrong)
    with pytest.raises(ConfigError, match=r"'stream.seed=1'.*only the selection can change"):
        rethreshold(str(folder / "out"), str(folder / "x"), overrides=["stream.seed=1"])


def test_figures_know_the_truth_where_samples_tell_it(folder: Path):
    world = list(web(ShapesConfig(web=40, size=16)))
    write_shards(world, folder / "shapes", "web", 20).save(folder / "data" / "web.json")
    figures, truth = run(folder), {sample.key: sample.meta["truth"] for sample in world}
    assert figures["noise"]["web"]["before"] == 0.5
    kept = [is_true(truth[s.key], s.texts[0]) for s in world if s.texts[0] in decided(folder).get(s.key, [])]
    assert figures["capfilt"]["web"] == {"precision": np.mean(kept), "recall": sum(kept) / 20, "kept": len(kept) / 40}
    assert figures["noise"]["web"]["after"] == figures["capfilt"]["web"]["precision"]
    assert figures["scores"]["web"]["unknown"] == tuple([0] * 20)


def test_one_model_may_be_both(folder: Path):
    both_in_one = model_folder(both(), folder / "both")
    figures = run(folder, captioner=both_in_one, filter=both_in_one)
    assert figures["counts"]["synthetic"] == 24
    assert figures["capfilt"]["synthetic"]["kept"] > 0


def test_variants(folder: Path):
    everything = run(folder, "variant=captioner", out="captioner-only", filter=None)
    assert everything["capfilt"]["web"]["kept"] == everything["capfilt"]["synthetic"]["kept"] == 1
    filtered = run(folder, "variant=filter", out="filter-only", captioner=None)
    assert filtered["counts"]["synthetic"] == 0
    assert 0 < filtered["capfilt"]["web"]["kept"] < 1
    ranked = run(folder, "selection.rule={type: best, keep: 2}", "stream.captions=3", out="ranked")
    assert ranked["counts"]["synthetic"] == 72
    assert all(len(sample.texts) == 2 for sample in read(Manifest.load(folder / "ranked" / "web.json")).values())


def test_tars_that_somebody_else_wrote(folder: Path):
    (folder / "data" / "web.json").unlink()
    for path in (folder / "shards").glob("*.idx.jsonl"):
        path.unlink()
    run(folder, f"source={folder}/shards/web-")
    assert {key: sample.texts for key, sample in read(Manifest.load(folder / "out" / "web.json")).items()} == decided(folder)


def test_a_worker_that_is_killed_is_replaced(folder: Path):
    @contextmanager
    def killed(uri: str) -> Iterator[Callable[[], bool]]:
        with on_this_machine(uri, 1, folder / "logs") as working:
            assert working()
            while not list((folder / "store").glob("capfilt/*/worker/*.json")):
                assert working()
                time.sleep(0.05)
            (child,) = children(os.getpid())
            os.kill(child, signal.SIGKILL)
            yield working

    run(folder, workers=killed)
    assert len(list((folder / "logs").glob("worker-1-*.log"))) == 2
    lost = Manifest.load(folder / "out" / "web.json")
    shutil.rmtree(folder / "store")
    run(folder, out="undisturbed")
    assert lost.digest == Manifest.load(folder / "undisturbed" / "web.json").digest


def children(parent: int) -> list[int]:
    """Processes that run workers."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        pid, rest = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
        if int(rest[1]) == parent and b"blip.runs.worker" in (stat.parent / "cmdline").read_bytes():
            found.append(pid)
    return found


def test_a_worker_that_cannot_begin_ends_the_step(folder: Path):
    save_file({"of.another.model": torch.ones(1)}, folder / "filter" / "model.safetensors")
    with pytest.raises((WorkerError, ConfigError), match=r"worker-1-\w+ ended with code .*log: "):
        run(folder, workers=lambda uri: on_this_machine(uri, 1, folder / "logs"))


def test_few_broken_shards_are_named_and_many_end_the_job(folder: Path):
    web = Manifest.load(folder / "data" / "web.json")
    web.store.path(web.shards[1].name).write_bytes(b"cut")
    with pytest.raises(ShardError, match=rf"1 of 4 shards were set aside.*{web.shards[1].name} after 4 attempts.*cut short"):
        run(folder)
    figures = run(folder, "lost=0.25", workers=nowhere)
    assert figures["counts"]["shards.dead"] == 1
    assert web.shards[1].sha256 in figures["dead"][web.shards[1].name]["errors"][0]
    assert Manifest.load(folder / "out" / "web.json").meta["dead"] == [web.shards[1].name]


def test_mistakes_are_named_before_any_work(folder: Path):
    with pytest.raises(ConfigError, match="captioner None: name a model folder, or set variant"):
        run(folder, captioner=None)
    with pytest.raises(ConfigError, match=r"source 'wob': there is no .*wob.json"):
        run(folder, "source=wob")
    with pytest.raises(ConfigError, match=r"unknown key stream\.bach; did you mean batch"):
        run(folder, "stream.bach=3")
    (folder / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        run(folder, store=folder / "file")


def test_a_job_is_the_same_as_long_as_its_output_is(folder: Path):
    job = Job(config=CapFiltConfig(), input=Manifest.load(folder / "data" / "web.json"), captioner=None, filter=None)

    def changed(**config) -> str:
        return job.model_copy(update={"config": CapFiltConfig(**config)}).identity

    assert changed(workers=7, threads=3, report=9, lost=0.5) == job.identity
    assert changed(variant="filter") != job.identity
    assert job.model_copy(update={"revision": "next"}).identity != job.identity


@pytest.mark.parametrize("preset", presets())
def test_presets_are_sound(preset: str):
    assert load(CapFiltConfig, "capfilt", preset).stream.captions >= 1
