"""A queue of shards in a store: workers take leases, and the first commit of a shard is final."""

import json
import random
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

from pydantic import Field

from blip.config import Config
from blip.shards.verification import ShardError
from blip.storage import Store
from blip.storage.records import parse_record

READERS = 16
"""Concurrent reads of small objects from a store."""
ShardRecord = dict[str, Any]
"""The content of a shard's lease, its commit, or the report of its failures."""


class LeaseConfig(Config):
    seconds: float = Field(default=60.0, gt=0)
    """Seconds without a renewal after which a lease expires and other workers may take the shard."""
    attempts: int = Field(default=4, ge=1)
    """Attempts at a shard before it is set aside and named in the report."""


@dataclass(frozen=True)
class Lease:
    """The right of one worker to process a shard; `number` counts the leases of the shard from 1."""

    shard: str
    number: int


class ShardQueue:
    """The shards of a job, processed by any number of workers that may join and leave at any time.

    In the job's store `commit/SHARD.json` marks a shard as done and names its output; `dead/SHARD.json` marks one as
    set aside. `lease/SHARD.json` only avoids duplicate work: if two workers process one shard, the first commit wins.
    The clocks of workers need not agree. A lease that expires later than its length from now comes from a clock that is
    ahead, and is timed from when this worker first saw it; one from a clock that is behind expires early, which costs
    duplicate work only.
    """

    def __init__(self, store: Store, shards: Sequence[str], worker: str, cfg: LeaseConfig):
        self.store, self.worker, self.cfg = store, worker, cfg
        self.shards = list(shards)
        random.Random(worker).shuffle(self.shards)  # a different order per worker makes contention rare
        self.settled: set[str] = set()
        self.returned: set[Lease] = set()
        self.seen: dict[
            str, tuple[str, float]
        ] = {}  # by shard: the tag of its lease, and when this worker first saw it
        self.lock = Lock()  # threads of this worker must not mistake each other's updates for another worker's

    def pending(self) -> list[str]:
        """Returns the shards neither done nor set aside according to the store's listing, in this worker's order."""
        for kind in ("commit", "dead"):
            keys = self.store.list(f"{kind}/")
            self.settled.update(key.removeprefix(f"{kind}/").removesuffix(".json") for key in keys)
        return [shard for shard in self.shards if shard not in self.settled]

    def claim(self) -> Lease | None:
        """Returns a lease on a free shard, or None if there is none at the moment."""
        for shard in self.pending():
            lease = self.take(shard)
            if lease:
                return lease
        return None

    def take(self, shard: str) -> Lease | None:
        """Returns a lease on this shard if it is free or its lease has expired, else None."""
        key = f"lease/{shard}.json"
        found = self.store.get_tagged(key)
        if found is None:
            record = {"number": 1, "attempts": 0, "errors": [], "begun": False, **self.terms()}
            won = self.store.put_new(key, dump(record))
        else:
            data, tag = found
            record = parse_record(data, f"{self.store.uri}/{key}")
            if self.is_held(shard, record, tag):
                return None
            if record["begun"]:
                record["errors"].append(f"worker {record['worker']} went silent")
            if record["attempts"] >= self.cfg.attempts:
                if not self.is_settled(shard):
                    self.set_aside(shard, record)
                return None
            record["number"] += 1
            record |= {"begun": False, **self.terms()}
            won = self.store.put_if(key, dump(record), tag)
        if not won or self.is_settled(shard):  # listings may be stale, reads are not
            return None
        return Lease(shard, record["number"])

    def is_held(self, shard: str, record: ShardRecord, tag: str) -> bool:
        """Returns whether a lease has not expired. Each renewal changes the tag."""
        now = time.time()
        if self.seen.get(shard, ("", 0.0))[0] != tag:
            self.seen[shard] = tag, now
        _, first_seen = self.seen[shard]
        length = record.get("seconds", self.cfg.seconds)
        return now < min(record["expires"], first_seen + length)

    def terms(self) -> ShardRecord:
        """Returns the fields of a lease that begins now."""
        return {"worker": self.worker, "expires": time.time() + self.cfg.seconds, "seconds": self.cfg.seconds}

    def is_settled(self, shard: str) -> bool:
        if self.store.exists(f"commit/{shard}.json") or self.store.exists(f"dead/{shard}.json"):
            self.settled.add(shard)
        return shard in self.settled

    def begin(self, lease: Lease) -> bool:
        """Counts an attempt, which an expiry of the lease turns into a failed one.

        Returns False if the lease has passed to another worker.
        """
        with self.lock:
            return self.update(lease, attempts=1, begun=True) is not None

    def renew(self, lease: Lease) -> bool:
        """Prolongs a lease; returns False if it was released or has passed to another worker."""
        with self.lock:
            return lease not in self.returned and self.update(lease) is not None

    def release(self, lease: Lease) -> None:
        """Releases a lease and undoes the count of its attempt: the worker ends for a reason other than the shard."""
        with self.lock:
            self.returned.add(lease)
            self.update(lease, forgiven=True, begun=False, expires=0.0)

    def fail(self, lease: Lease, error: str) -> None:
        """Releases a lease after a failed attempt; sets the shard aside after the last one."""
        with self.lock:
            self.returned.add(lease)
            retry_at = time.time() + self.cfg.seconds / 20  # the cause may be transient, or limited to one machine
            record = self.update(lease, begun=False, expires=retry_at, error=f"worker {self.worker}: {error}")
        if record and record["attempts"] >= self.cfg.attempts:
            self.set_aside(lease.shard, record)

    def update(
        self, lease: Lease, attempts: int = 0, error: str = "", forgiven: bool = False, **changes: Any
    ) -> ShardRecord | None:
        """Updates the record of a lease and returns it, or returns None if another worker holds the lease.

        Adds `attempts` to the count and `error` to the list; `forgiven` takes back an attempt that has begun.
        """
        key = f"lease/{lease.shard}.json"
        data, tag = self.store.get_tagged(key) or (b"{}", "")
        record = parse_record(data, f"{self.store.uri}/{key}")
        if (record.get("worker"), record.get("number")) != (self.worker, lease.number):
            return None
        record["attempts"] += attempts
        if forgiven and record["begun"]:
            record["attempts"] -= 1
        if error:
            record["errors"].append(error)
        record |= {**self.terms(), **changes}
        return record if self.store.put_if(key, dump(record), tag) else None

    def set_aside(self, shard: str, record: ShardRecord) -> None:
        report = {"shard": shard, "attempts": record["attempts"], "errors": record["errors"]}
        self.store.put_new(f"dead/{shard}.json", dump(report))
        self.settled.add(shard)

    def commit(self, lease: Lease, record: ShardRecord) -> bool:
        """Marks a shard as done; returns False if another worker has committed it before, whose record stays."""
        commit = {"shard": lease.shard, "worker": self.worker, **record}
        won = self.store.put_new(f"commit/{lease.shard}.json", dump(commit))
        self.settled.add(lease.shard)
        return won


def committed(store: Store, shard: str) -> ShardRecord | None:
    """Returns the commit record of a shard, or None. Reads the object, as listings may be stale."""
    return read_record(store, f"commit/{shard}.json")


def set_aside(store: Store, shard: str) -> ShardRecord | None:
    """Returns the attempts and errors of a shard that was set aside, or None."""
    return read_record(store, f"dead/{shard}.json")


def read_record(store: Store, key: str) -> ShardRecord | None:
    found = store.get_tagged(key)
    return parse_record(found[0], f"{store.uri}/{key}") if found else None


def new_worker_name() -> str:
    """Returns a unique name for a worker: the host's name and six random digits."""
    return f"{socket.gethostname()}-{uuid.uuid4().hex[:6]}"


def shard_records(store: Store, shards: Sequence[str]) -> tuple[dict[str, ShardRecord], dict[str, ShardRecord]]:
    """Returns the records of committed shards and of those set aside, by name in the order of `shards`."""
    with ThreadPoolExecutor(READERS) as pool:
        commits = list(pool.map(lambda name: committed(store, name), shards))
        done = {name: record for name, record in zip(shards, commits, strict=True) if record}
        rest = [name for name in shards if name not in done]
        reports = list(pool.map(lambda name: set_aside(store, name), rest))
        dead = {name: record for name, record in zip(rest, reports, strict=True) if record}
    return done, dead


def last_errors(dead: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns the last error of each shard that was set aside."""
    return {name: record["errors"][-1] if record["errors"] else "" for name, record in dead.items()}


def finished(
    store: Store, shards: Sequence[str], lost: float = 0.0
) -> tuple[dict[str, ShardRecord], dict[str, ShardRecord]]:
    """Returns the records as `shard_records` does, once all shards are done or set aside.

    Raises ShardError if any is neither, or if more than the share `lost` of them was set aside.
    """
    done, dead = shard_records(store, shards)
    missing = [name for name in shards if name not in done and name not in dead]
    if missing:
        raise ShardError(
            f"job {store.uri}: {len(missing)} shards are not done, {missing[0]} among them; start workers again"
        )
    if len(dead) > lost * len(shards):
        name, record = next(iter(dead.items()))
        raise ShardError(
            f"job {store.uri}: {len(dead)} of {len(shards)} shards were set aside where lost={lost} is allowed; "
            f"{name} after {record['attempts']} attempts: {record['errors'][-1]}. "
            "Delete dead/ and lease/ there to try again"
        )
    return done, dead


def dump(record: ShardRecord) -> bytes:
    return json.dumps(record, sort_keys=True).encode()
