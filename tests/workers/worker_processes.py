"""Worker processes to kill at any moment, with a pure function in place of the models."""

import hashlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar

from blip.shards.manifest import Manifest, Shard
from blip.storage import Store, open_store
from blip.storage.s3 import S3Store
from blip.workers.queue import LeaseConfig, ShardQueue, committed
from blip.workers.worker import Output, Process, Worker

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["blip.workers.worker", "boto3"])
LEASES = LeaseConfig(seconds=1.5, attempts=50)


def reverse_bytes(_shard: Shard, path: Path, folder: Path, tally: Counter[str]) -> Output:
    """Writes the bytes of the shard in reverse, after a pause."""
    time.sleep(0.05)
    file = folder / "out.tar"
    file.write_bytes(path.read_bytes()[::-1])
    tally["images"] += 1
    return Output(file, {"samples": 1})


def make_worker(
    store: Store,
    manifest: Manifest,
    name: str,
    leases: LeaseConfig = LEASES,
    process: Process = reverse_bytes,
    prefetch: bool = True,
) -> Worker:
    shards = {shard.name: shard for shard in manifest.shards}
    queue = ShardQueue(store, list(shards), name, leases)
    return Worker(queue, manifest.store, shards, process, report=0.2, prefetch=prefetch)


class StaleStore(S3Store):
    """A store whose listings are stale at random."""

    seen: ClassVar[dict[str, list[str]]] = {}

    def list(self, prefix: str = "") -> list[str]:
        old, self.seen[prefix] = self.seen.get(prefix, []), super().list(prefix)
        return random.choice([old, self.seen[prefix]])


def run_worker(uri: str, manifest: Manifest, name: str, environment: dict[str, str], polite: bool = False) -> None:
    """Works until no shard is left; a polite worker releases its leases on SIGTERM."""
    os.environ.update(environment)
    if ahead := float(os.environ.get("BLIP_TEST_AHEAD", "0")):
        now = time.time
        time.time = lambda: now() + ahead
    if polite:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    make_worker(StaleStore(uri) if uri.startswith("s3:") else open_store(uri), manifest, name).run()


def run_workers(uri: str, manifest: Manifest, kills: int, seed: int = 0, workers: int = 4) -> int:
    """Runs workers until no shard is left, kills and replaces some, and returns how many were killed."""
    rng, killed, started, running = random.Random(seed), 0, 0, []
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    while True:
        for process in [p for p in running if p.exitcode not in (None, 0)]:
            assert process.exitcode == -signal.SIGKILL
            running.remove(process)
        if running and all(process.exitcode == 0 for process in running):
            return killed
        while len(running) < workers:
            started += 1
            running.append(PROCESSES.Process(target=run_worker, args=(uri, manifest, f"worker-{started}", environment)))
            running[-1].start()
        time.sleep(rng.uniform(0.05, 0.25))
        living = [process for process in running if process.exitcode is None]
        if killed < kills and living:
            rng.choice(living).kill()
            killed += 1


def outcome(uri: str, manifest: Manifest) -> dict[str, dict]:
    """Returns the commit of each shard; every output exists and has the digest of its commit."""
    store, found = open_store(uri), {}
    for shard in manifest.shards:
        record = committed(store, shard.name)
        assert record is not None, f"{shard.name} was lost"
        assert hashlib.sha256(store.get(record["name"])).hexdigest() == record["sha256"]
        found[shard.name] = {name: record[name] for name in ("name", "sha256", "samples")}
    assert len(open_store(uri).list("commit/")) == len(manifest.shards)
    return found
