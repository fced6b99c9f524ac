"""`blip evaluate`: figures do not depend on the number of workers, nor on kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from tiny_models import both, model_folder, samples

from blip.budget import BudgetError
from blip.config import ConfigError
from blip.results import EvaluationResult
from blip.runs.context import RunContext
from blip.runs.evaluate import evaluate
from blip.shards.discover import discover
from blip.shards.manifest import Manifest
from blip.shards.verification import ShardError
from blip.shards.writing import write_shards
from blip.storage import open_store
from blip.tasks.captioning import Captioning
from blip.workers.local_pool import LocalPool

RUN = (
    "evaluation.batch=2",
    "lease.seconds=2",
    "report=0.1",
    "retrieval.rerank=3",
    "retrieval.text.tokens=12",
    "captioning.text.tokens=12",
)


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_TRACKING", "off")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder of four shards and a model folder."""
    (tmp_path / "data").mkdir()
    write_shards(samples(20), tmp_path / "shards", "test", 5).save(tmp_path / "data" / "test.json")
    model_folder(both(), tmp_path / "model")
    return tmp_path


def evaluated(
    folder: Path, out: str, *overrides: str, store: str | None = None, workers=None, revision: str = "r"
) -> tuple[EvaluationResult, bytes]:
    """Returns the figures that do not differ from run to run, and the captions."""
    store = store or str(folder / f"store-{out}")
    context = RunContext(preset="shapes", overrides=(*RUN, *overrides), store=store, revision=revision)
    evaluate(context, data=folder / "data", model=folder / "model", out=folder / out, workers=workers)
    result = EvaluationResult.load(folder / out / "metrics.json")
    return result.model_copy(update={"seconds": 0.0}), (folder / out / "captions.json").read_bytes()


@contextmanager
def pod(uri: str) -> Iterator[Callable[[], bool]]:
    """Runs the evaluation as a pod of two GPUs does."""
    subprocess.run([sys.executable, "-m", "blip.runs.worker", uri, "--processes", "2"], check=True)
    assert len(open_store(uri).list("worker/")) == 2
    yield lambda: False


@contextmanager
def nowhere(uri: str) -> Iterator[Callable[[], bool]]:
    raise AssertionError(f"nothing is left to do in {uri}")
    yield lambda: False


def test_workers_of_which_one_is_killed_find_what_one_alone_finds(folder: Path):
    """Each worker predicts some of the shards; re-ranking waits until all are predicted."""
    alone = evaluated(folder, "alone")
    killed: list[int] = []

    @contextmanager
    def crew(uri: str) -> Iterator[Callable[[], bool]]:
        pool = LocalPool(uri, 2, folder / "logs")

        def working_and_killing() -> bool:
            at_work = {path.stem for path in Path(uri).glob("worker/*.json")}
            pids = [process.pid for name, process in pool.processes.values() if name in at_work]
            if pids and not killed and list(Path(uri).glob("*/*/commit/*.json")):
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])
            return pool.is_running()

        try:
            yield working_and_killing
        finally:
            pool.stop()

    assert evaluated(folder, "crew", workers=crew) == alone
    assert killed
    assert {"tr1", "ir1"} <= set(alone[0].scores["retrieval"])
    assert [p["key"] for p in json.loads(alone[1])] == [f"{i:04d}" for i in range(20)]


def test_a_pod_finds_model_and_work_in_the_bucket(folder: Path, s3: str):
    assert evaluated(folder, "pod", store=f"{s3}/run", workers=pod) == evaluated(folder, "alone")


def test_what_was_evaluated_is_not_evaluated_again(folder: Path):
    store = str(folder / "store")
    first = evaluated(folder, "first", store=store)
    assert evaluated(folder, "second", "lease.seconds=3", store=store, workers=nowhere) == first
    with pytest.raises(AssertionError, match="nothing is left"):
        evaluated(folder, "third", "retrieval.rerank=4", store=store, workers=nowhere)


def test_a_fix_of_the_code_goes_on_and_each_commit_says_which_revision_made_it(folder: Path):
    store = str(folder / "store")
    first = evaluated(folder, "first", store=store)
    begun = [key for key in open_store(store).list("evaluation/") if "/captioning/" in key and "/commit/" in key]
    open_store(store).delete(begun[0])
    assert evaluated(folder, "second", store=store, revision="fixed") == first
    made = [json.loads(open_store(store).get(key))["revision"] for key in begun]
    assert made == ["fixed", "r", "r", "r"]


def test_a_process_that_must_go_meanwhile_leaves_no_blame_and_no_lease(folder: Path, monkeypatch: pytest.MonkeyPatch):
    store, handler = str(folder / "store"), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Captioning, "predict", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit, match="143"):
            evaluated(folder, "gone", "lease.seconds=600", store=store)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert evaluated(folder, "again", "lease.seconds=600", "lease.attempts=1", store=store) == evaluated(
        folder, "alone"
    )


def test_a_limit_is_of_the_whole_set(folder: Path):
    _, captions = evaluated(folder, "limited", "evaluation.limit=7")
    _, all_of_them = evaluated(folder, "unlimited")
    assert json.loads(captions) == json.loads(all_of_them)[:7]


def test_a_shard_that_cannot_be_read_is_named(folder: Path):
    shard = Manifest.load(folder / "data" / "test.json").shards[2]
    path = folder / "shards" / shard.name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ShardError, match=rf"{shard.name} after 4 attempts: .* is cut short"):
        evaluated(folder, "out")


def test_what_cannot_be_evaluated_is_left_out_and_counted(folder: Path):
    good = samples(6)
    bad = [replace(good[1], key="cut", images=[good[1].images[0][:60]]), replace(good[2], key="mute", texts=[" "])]
    for name, some in (("good", good), ("mixed", [*good[:2], bad[0], *good[2:4], bad[1], *good[4:]])):
        write_shards(some, folder / name, "test", 4).save(folder / "data" / f"{name}.json")
    figures = {}
    for name in ("good", "mixed"):
        context = RunContext(preset="shapes", overrides=(*RUN, f"split={name}"), store=str(folder / "store"))
        figures[name] = evaluate(context, data=folder / "data", model=folder / "model", out=folder / name)
    assert figures["good"].rejected == {}
    assert sorted(figures["mixed"].rejected.values()) == [1, 1]
    assert "empty text" in figures["mixed"].rejected
    for kind in ("retrieval", "captioning"):
        assert figures["mixed"].scores[kind] == pytest.approx(figures["good"].scores[kind])
    write_shards(bad, folder / "bad", "test", 4).save(folder / "data" / "bad.json")
    with pytest.raises(
        ConfigError,
        match=r"none of the samples of split bad can be evaluated: 1 \(empty text\), 1 \(image is cut short\)",
    ):
        evaluated(folder, "out", "split=bad")


def test_what_is_no_sample_counts_for_nothing_that_was_evaluated(folder: Path):
    """A foreign tar may hold more entries without an image than samples; the remaining samples are still evaluated."""
    (folder / "tars").mkdir()
    with tarfile.open(folder / "tars" / "web.tar", "w") as tar:
        for sample in samples(5):
            for name, data in (
                (f"{sample.key}.png", sample.images[0]),
                (f"{sample.key}.txt", sample.texts[0].encode()),
            ):
                (member := tarfile.TarInfo(name)).size = len(data)
                tar.addfile(member, BytesIO(data))
        for i in range(20):
            tar.addfile(tarfile.TarInfo(f"lost{i}.txt"), BytesIO())
    discover(str(folder / "tars"), "test").save(folder / "data" / "test.json")
    store = folder / "store"
    first = evaluated(folder, "first", store=str(store))
    assert len(json.loads(first[1])) == 5
    (begun,) = store.glob("evaluation/*/captioning")
    shutil.rmtree(begun)
    assert evaluated(folder, "second", store=str(store)) == first


def test_what_can_be_known_before_is_said_before(folder: Path, monkeypatch: pytest.MonkeyPatch):
    context = RunContext(preset="shapes", store=str(folder / "store"))
    with pytest.raises(ConfigError, match=r"model '.*absent': no such file or folder"):
        evaluate(context, data=folder / "data", model=folder / "absent", out=folder / "out")
    for wrong, words in (
        ("evaluation.limit=0", "limit"),
        ("evaluation.batch=0", "batch"),
        ("captioning=null", "nothing is evaluated"),
    ):
        with pytest.raises(ConfigError, match=words):
            evaluated(folder, "out", "retrieval=null", wrong, workers=nowhere)
    monkeypatch.setattr("blip.budget.spent", lambda _: {"pretrain": 2.0})
    with pytest.raises(BudgetError, match=r"max_gpu_hours is 1 and the run has spent 2\.00"):
        evaluated(folder, "out", "max_gpu_hours=1", workers=nowhere)
