"""Workers in processes of their own that may be killed at any moment, with a pure function in place of the models."""

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

from blip.data.manifest import Manifest, Shard
from blip.storage import Store, open_store
from blip.storage.s3 import S3Store
from blip.workers.queue import LeaseConfig, ShardQueue, committed
from blip.workers.worker import Output, Worker

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["blip.workers.worker", "boto3"])
LEASES = LeaseConfig(seconds=1.5, attempts=50)


def stand_in(_shard: Shard, path: Path, folder: Path, tally: Counter[str]) -> Output:
    """The same output for the same shard, after a while."""
    time.sleep(0.05)
    data = path.read_bytes()
    tar, scores = folder / "out.tar", folder / "out.parquet"
    tar.write_bytes(data[::-1])
    scores.write_bytes(hashlib.sha256(data).digest())
    tally["images"] += 1
    return Output(tar, {".parquet": scores}, {"samples": 1, "scores": hashlib.sha256(scores.read_bytes()).hexdigest()})


def make_worker(store: Store, manifest: Manifest, name: str, leases: LeaseConfig = LEASES, process=stand_in, ahead: bool = True) -> Worker:
    shards = {shard.name: shard for shard in manifest.shards}
    return Worker(ShardQueue(store, list(shards), name, leases), manifest.store, shards, process, report=0.2, ahead=ahead)


class StaleStore(S3Store):
    """Every other listing is as old as the one before it."""

    seen: ClassVar[dict[str, list[str]]] = {}

    def list(self, prefix: str = "") -> list[str]:
        old, self.seen[prefix] = self.seen.get(prefix, []), super().list(prefix)
        return random.choice([old, self.seen[prefix]])


def run_worker(uri: str, manifest: Manifest, name: str, environment: dict[str, str], polite: bool = False) -> None:
    """Works until nothing is left; a polite worker gives its shards back when it must go."""
    os.environ.update(environment)
    if ahead := float(os.environ.get("BLIP_TEST_AHEAD", "0")):
        now = time.time
        time.time = lambda: now() + ahead
    if polite:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    make_worker(StaleStore(uri) if uri.startswith("s3:") else open_store(uri), manifest, name).run()


def run_crew(uri: str, manifest: Manifest, kills: int, seed: int = 0, workers: int = 4) -> int:
    """Runs workers until nothing is left, kills some of them, replaces those, and returns how many were killed."""
    rng, killed, started, crew = random.Random(seed), 0, 0, []
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    while True:
        for process in [p for p in crew if p.exitcode not in (None, 0)]:
            assert process.exitcode == -signal.SIGKILL
            crew.remove(process)
        if crew and all(process.exitcode == 0 for process in crew):
            return killed
        while len(crew) < workers:
            started += 1
            crew.append(PROCESSES.Process(target=run_worker, args=(uri, manifest, f"worker-{started}", environment)))
            crew[-1].start()
        time.sleep(rng.uniform(0.05, 0.25))
        living = [process for process in crew if process.exitcode is None]
        if killed < kills and living:
            rng.choice(living).kill()
            killed += 1


def outcome(uri: str, manifest: Manifest) -> dict[str, dict]:
    """What was committed of each shard; every output is there and is what its commit says."""
    store, found = open_store(uri), {}
    for shard in manifest.shards:
        record = committed(store, shard.name)
        assert record is not None, f"{shard.name} was lost"
        assert hashlib.sha256(store.get(record["name"])).hexdigest() == record["sha256"]
        assert hashlib.sha256(store.get(record["name"].replace(".tar", ".parquet"))).hexdigest() == record["scores"]
        found[shard.name] = {name: record[name] for name in ("name", "sha256", "samples", "scores")}
    assert len(open_store(uri).list("commit/")) == len(manifest.shards)
    return found
