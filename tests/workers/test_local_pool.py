"""Killed workers of this machine are replaced; failures that a replacement would repeat end the step in one line."""

import random
import time
from pathlib import Path

import pytest
from worker_processes import outcome

from blip.config import ConfigError
from blip.shards.manifest import Manifest
from blip.shards.sample import Sample
from blip.shards.writing import write_shards
from blip.storage import open_store
from blip.workers import local_pool
from blip.workers.local_pool import LocalPool, WorkerError
from blip.workers.progress import Tallies

SHARDS = 12


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    monkeypatch.setattr(local_pool, "MODULE", "pool_worker")
    monkeypatch.setattr(local_pool, "BACKOFF", 0.01)
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{Path(__file__).parents[2]}")
    samples = (Sample(f"{i:04d}", [b"image %d" % i], [f"text {i}"]) for i in range(SHARDS))
    manifest = write_shards(samples, tmp_path / "web", "web", per_shard=1)
    manifest.save(tmp_path / "job" / "manifest.json")
    return manifest


@pytest.fixture
def pool(manifest: Manifest, tmp_path: Path):
    pool = LocalPool(str(tmp_path / "job"), 2, tmp_path / "logs")
    assert manifest.shards
    yield pool
    pool.stop()


def test_workers_that_are_killed_as_soon_as_they_start_are_replaced(pool: LocalPool, manifest: Manifest):
    killed = 0
    while pool.is_running():
        if killed < 12:
            for _, process in pool.processes.values():
                if process.poll() is None:
                    process.kill()
                    killed += 1
        time.sleep(0.02)
    assert killed >= 12
    assert len(outcome(pool.job, manifest)) == SHARDS


def test_workers_that_are_killed_at_any_moment_are_replaced(pool: LocalPool, manifest: Manifest):
    rng, killed = random.Random(3), 0
    while pool.is_running():
        time.sleep(rng.uniform(0.02, 0.4))
        running = [process for _, process in pool.processes.values() if process.poll() is None]
        if running and killed < 8:
            rng.choice(running).kill()
            killed += 1
    assert killed == 8
    assert len(outcome(pool.job, manifest)) == SHARDS


ROW = "workers in a row"


@pytest.mark.parametrize(
    ("fate", "starts", "message"),
    [
        (
            "fails",
            6,
            rf"6 {ROW} failed before they began; worker-\d-\w+ ended with code 1: ValueError: no such model \(log: ",
        ),
        (
            "is killed",
            8,
            rf"8 {ROW} were lost before one of them finished a shard; worker-\d-\w+ ended with code -9 \(SIGKILL",
        ),
    ],
)
def test_workers_that_never_begin_end_the_step_in_one_line(
    pool: LocalPool, monkeypatch: pytest.MonkeyPatch, fate: str, starts: int, message: str
):
    monkeypatch.setenv("POOL_WORKER", fate)
    monkeypatch.setattr(local_pool, "MAX_LOST", 4)
    with pytest.raises(WorkerError, match=message) as error:
        work_off(pool)
    assert "\n" not in str(error.value)
    assert starts <= len(list(pool.logs.iterdir())) < starts + pool.size


def test_a_worker_with_a_wrong_configuration_is_not_replaced(pool: LocalPool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POOL_WORKER", "is refused")
    with pytest.raises(ConfigError, match="ended with code 42"):
        work_off(pool)
    assert len(list(pool.logs.iterdir())) == 2


def work_off(pool: LocalPool) -> None:
    while pool.is_running():
        time.sleep(0.01)


def test_reports_of_the_past_are_told_from_those_of_running_workers(tmp_path: Path):
    store = open_store(tmp_path)
    store.put("worker/gone.json", b'{"seconds": 100, "images": 900, "shards": 9}')
    store.put("worker/running.json", b'{"seconds": 50, "images": 400, "shards": 4}')
    tallies = Tallies.since_now(store, 13)
    tallies.read()
    assert tallies.workers == {}
    store.put("worker/running.json", b'{"seconds": 52, "images": 420, "shards": 5, "web": 3}')
    store.put("worker/new.json", b'{"seconds": 1, "images": 8}')
    tallies.read()
    assert tallies.workers == {
        "running": {"seconds": 2, "images": 20, "shards": 1, "web": 3},
        "new": {"seconds": 1, "images": 8},
    }
    assert tallies.metrics()["capfilt/running/images_per_second"] == 10
    assert tallies.bar_figures()["shards"] == 14
