"""Workers that join, leave and fail: every shard is done once, with the same output."""

import json
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from worker_processes import LEASES, PROCESSES, make_worker, outcome, reverse_bytes, run_worker, run_workers

from blip.shards.manifest import Manifest, Shard
from blip.shards.sample import Sample
from blip.shards.verification import ShardError
from blip.shards.writing import write_shards
from blip.storage import FolderStore, Store, StoreError, open_store
from blip.workers import queue as shard_queue
from blip.workers.queue import LeaseConfig, ShardQueue, committed, set_aside
from blip.workers.worker import Output

QUICK = LeaseConfig(seconds=0.4, attempts=3)


def write(root: str | Path, shards: int = 24) -> Manifest:
    samples = (Sample(f"{i:04d}", [b"image %d" % i], [f"text {i}"]) for i in range(shards))
    return write_shards(samples, root, "web", per_shard=1)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write(tmp_path / "web", 4)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "job")


def queue(store: Store, manifest: Manifest, worker: str, cfg: LeaseConfig = QUICK) -> ShardQueue:
    return ShardQueue(store, [shard.name for shard in manifest.shards], worker, cfg)


class Clock:
    """The clock of leases."""

    now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(shard_queue, "time", clock)
    return clock


def test_killed_workers_lose_nothing_and_do_nothing_twice_in_a_folder(tmp_path: Path):
    manifest, undisturbed, killed = write(tmp_path / "web"), str(tmp_path / "undisturbed"), str(tmp_path / "killed")
    make_worker(open_store(undisturbed), manifest, "alone").run()
    assert run_workers(killed, manifest, kills=8) >= 4
    assert outcome(killed, manifest) == outcome(undisturbed, manifest)


def test_killed_workers_lose_nothing_in_a_bucket_that_fails(
    tmp_path: Path, s3: str, proxy, monkeypatch: pytest.MonkeyPatch
):
    """Throttling, resets, short bodies, slow reads, lost answers, old listings, and workers killed meanwhile."""
    with monkeypatch.context() as direct:
        direct.setenv("AWS_ENDPOINT_URL", f"http://{proxy.upstream}")
        manifest = write(f"{s3}/web")
    faults = [("GET", fault) for fault in ("503", "429", "reset", "truncated", "slow", "refused", "lost")]
    faults += [("PUT", fault) for fault in ("503", "refused", "lost")]
    for method, fault in random.Random(1).choices(faults, k=40):
        proxy.fail(
            method, fault, ""
        )  # and then an answer: one worker alone must not meet more failures in a row than it tries
    assert run_workers(f"{s3}/job", manifest, kills=6) >= 3
    assert len(proxy.faults) < 20
    proxy.faults.clear()
    write(tmp_path / "web")
    undisturbed = str(tmp_path / "undisturbed")
    make_worker(open_store(undisturbed), manifest.model_copy(update={"root": str(tmp_path / "web")}), "alone").run()
    assert outcome(f"{s3}/job", manifest) == outcome(undisturbed, manifest)


def test_a_shard_belongs_to_one_worker_until_that_goes_silent(store: Store, manifest: Manifest, clock: Clock):
    first, second = queue(store, manifest, "first"), queue(store, manifest, "second")
    leases = [first.claim() for _ in manifest.shards]
    assert None not in leases
    assert second.claim() is None
    clock.now += 0.3
    assert first.renew(leases[0])
    clock.now += 0.3
    taken = {got.shard for _ in range(4) if (got := second.claim())}
    assert taken == {got.shard for got in leases[1:]}
    assert not first.renew(leases[1])
    assert not first.begin(leases[1])


@pytest.mark.parametrize("ahead", [0.1, 1.0, 3600.0])
def test_a_worker_whose_clock_is_ahead_is_waited_for_no_longer_than_a_lease(
    store: Store, manifest: Manifest, clock: Clock, ahead: float
):
    fast, waiting = queue(store, manifest, "fast"), queue(store, manifest, "waiting")
    clock.now += ahead
    lease = fast.take(manifest.shards[0].name)
    fast.begin(lease)
    clock.now -= ahead
    for _ in range(3):
        assert waiting.take(lease.shard) is None
        clock.now += 0.3
        clock.now += ahead
        assert fast.renew(lease), "as long as it lives, its shard is its own"
        clock.now -= ahead
    assert waiting.take(lease.shard) is None
    clock.now += 0.39
    assert waiting.take(lease.shard) is None
    clock.now += 0.02
    assert waiting.take(lease.shard)


def test_a_longer_lease_of_other_settings_is_kept(store: Store, manifest: Manifest, clock: Clock):
    patient, hasty = queue(store, manifest, "patient", LeaseConfig(seconds=60)), queue(store, manifest, "hasty")
    shard = manifest.shards[0].name
    assert patient.take(shard)
    assert hasty.take(shard) is None
    clock.now += 1
    assert hasty.take(shard) is None


def test_a_killed_worker_an_hour_ahead_keeps_nobody_waiting(store: Store, manifest: Manifest):
    ahead = {"BLIP_TEST_AHEAD": "3600"}
    process = PROCESSES.Process(target=run_worker, args=(store.uri, manifest, "fast", ahead))
    process.start()
    while not any(json.loads(store.get(key))["begun"] for key in store.list("lease/")):
        time.sleep(0.01)
    process.kill()
    process.join()
    began = time.monotonic()
    make_worker(store, manifest, "other").run()
    assert time.monotonic() - began < 3 * LEASES.seconds
    assert all(committed(store, shard.name) for shard in manifest.shards)


def test_what_was_given_back_is_not_renewed(store: Store, manifest: Manifest, clock: Clock):
    """A heartbeat may come after a worker has failed a lease and before it has dropped it."""
    first, second = queue(store, manifest, "first"), queue(store, manifest, "second")
    failed, released = first.claim(), first.claim()
    first.begin(failed)
    first.fail(failed, "cut short")
    first.release(released)
    assert not first.renew(failed)
    assert not first.renew(released)
    assert second.take(released.shard)
    assert second.take(failed.shard) is None
    clock.now += QUICK.seconds / 10
    assert second.take(failed.shard)


def test_few_shards_are_done_at_once_by_as_many_workers(store: Store, manifest: Manifest):
    """A busy worker leases no shard that another could do: all process one at the same time."""
    meeting = Barrier(len(manifest.shards), timeout=30)

    def process(shard: Shard, path: Path, folder: Path, tally: Counter[str]) -> Output:
        meeting.wait()
        return reverse_bytes(shard, path, folder, tally)

    leases = LeaseConfig(seconds=60)
    workers = [
        make_worker(store, manifest, f"worker-{i}", leases, process, prefetch=False)
        for i in range(len(manifest.shards))
    ]
    with ThreadPoolExecutor(len(workers)) as pool:
        runs = []
        for worker in workers:
            time.sleep(0.2)
            runs.append(pool.submit(worker.run))
        for run in runs:
            run.result()
    assert [worker.tally["shards"] for worker in workers] == [1] * len(workers)


def test_the_first_commit_stays(store: Store, manifest: Manifest, clock: Clock):
    first, second = queue(store, manifest, "first"), queue(store, manifest, "second")
    slow = first.claim()
    clock.now += 1
    quick = second.take(slow.shard)
    assert second.commit(quick, {"name": "b"})
    assert not first.commit(slow, {"name": "a"})
    assert committed(store, slow.shard)["name"] == "b"


def test_a_listing_that_knows_nothing_makes_no_work_twice(
    store: Store, manifest: Manifest, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    make_worker(store, manifest, "first", QUICK).run()
    clock.now += 1
    late = queue(store, manifest, "late")
    monkeypatch.setattr(late.store, "list", lambda _: [])
    assert late.claim() is None
    assert not late.pending()


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1000])]
)
def test_a_shard_that_cannot_be_read_is_set_aside_and_named(store: Store, manifest: Manifest, damage):
    bad = manifest.shards[1]
    damage(manifest.store.path(bad.name))
    make_worker(store, manifest, "one", QUICK).run()
    assert [committed(store, shard.name) is not None for shard in manifest.shards] == [True, False, True, True]
    record = set_aside(store, bad.name)
    assert record["attempts"] == 3
    assert len(record["errors"]) == 3
    assert bad.name in record["errors"][0]
    assert bad.sha256 in record["errors"][0]


def test_a_shard_that_ends_its_workers_is_set_aside(store: Store, manifest: Manifest):
    bad = manifest.shards[2]

    def process(shard: Shard, path: Path, folder: Path, tally: Counter[str]) -> Output:
        if shard == bad:
            raise MemoryError("an image as large as the world")
        return reverse_bytes(shard, path, folder, tally)

    ended = 0
    while True:
        try:
            make_worker(store, manifest, f"worker-{ended}", QUICK, process).run()
        except MemoryError:
            ended += 1
        else:
            break
    assert ended == 3
    assert set_aside(store, bad.name)["errors"] == [
        f"worker worker-{i}: MemoryError: an image as large as the world" for i in range(3)
    ]
    assert all(committed(store, shard.name) for shard in manifest.shards if shard != bad)


def test_a_worker_that_must_go_leaves_no_blame(tmp_path: Path, store: Store, manifest: Manifest):
    process = PROCESSES.Process(target=run_worker, args=(store.uri, manifest, "guest", {}, True))
    process.start()
    while not list((tmp_path / "job").glob("lease/*.json")):
        time.sleep(0.02)
    process.terminate()
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    other = queue(store, manifest, "other", LeaseConfig(seconds=60, attempts=1))
    left = other.pending()
    assert left
    assert {got.shard for _ in manifest.shards if (got := other.claim())} == set(left)


def test_a_worker_that_must_go_as_it_begins_leaves_no_blame(
    store: Store, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
):
    """The attempt is recorded, and the worker is interrupted before `begin` returns."""
    begin = ShardQueue.begin

    def begin_and_go(self: ShardQueue, lease) -> bool:
        begin(self, lease)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(ShardQueue, "begin", begin_and_go)
        with pytest.raises(SystemExit):
            make_worker(store, manifest, "guest").run()
    other = queue(store, manifest, "other", LeaseConfig(seconds=60, attempts=1))
    assert {got.shard for _ in manifest.shards if (got := other.claim())} == {shard.name for shard in manifest.shards}


def test_a_failure_in_between_counts_what_was_done(store: Store, manifest: Manifest):
    def process(shard: Shard, path: Path, folder: Path, tally: Counter[str]) -> Output:
        if tally["images"] == 2:
            raise ShardError("it cannot be read as a tar: it is a poem")
        return reverse_bytes(shard, path, folder, tally)

    worker = make_worker(store, manifest, "one", QUICK, process)
    worker.run()
    assert worker.tally["shards"] == worker.tally["images"] == 2
    assert len(store.list("dead/")) == 2


class FullStore(FolderStore):
    """A folder on a disk that has no room for the last output."""

    def put_file(self, key: str, path: str | Path, *others: Any, **named: Any) -> None:
        if len(self.list("data/")) == 3:
            raise StoreError("No space left on device")
        super().put_file(key, path, *others, **named)


def test_a_disk_without_room_for_the_last_output_ends_the_worker(tmp_path: Path, manifest: Manifest):
    worker = make_worker(FullStore(tmp_path / "job"), manifest, "alone")
    errors: list[StoreError] = []

    def work() -> None:
        try:
            worker.run()
        except StoreError as error:
            errors.append(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert [str(error) for error in errors] == ["No space left on device"], "no wait for the shard that it holds itself"
    store = open_store(tmp_path / "job")
    make_worker(store, manifest, "later").run()
    assert all(committed(store, shard.name) for shard in manifest.shards)


def test_the_seconds_of_a_worker_of_several_queues_are_those_of_all(store: Store, manifest: Manifest):
    began, tally = time.monotonic() - 1000, Counter[str]()
    for part in ("first", "second"):
        worker = make_worker(store.join(part), manifest, "one", QUICK)
        worker.tally, worker.reports, worker.began = tally, store, began
        worker.run()
    report = json.loads(store.get("worker/one.json"))
    assert report["shards"] == 2 * len(manifest.shards)
    assert report["seconds"] >= 1000
