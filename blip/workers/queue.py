"""A queue of shards in a store: workers take leases, and the first commit of a shard is the truth."""

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
from blip.data.shards import ShardError
from blip.storage import Store

READERS = 16
"""Small objects read from a store at a time."""
Record = dict[str, Any]
"""What is written of a shard."""


class LeaseConfig(Config):
    seconds: float = Field(default=60.0, gt=0)
    """A worker that has not been heard of for so long is taken for dead, and others do its shards."""
    attempts: int = Field(default=4, ge=1)
    """A shard that so many workers have begun and not finished is set aside and named in the report."""


@dataclass(frozen=True)
class Lease:
    """One worker's right to do one shard, the `number`-th that was given for it (from 1)."""

    shard: str
    number: int


class ShardQueue:
    """The shards of a job, done by any number of workers that come and go.

    In the job's store `commit/SHARD.json` says that a shard is done and where its output lies, `dead/SHARD.json` that it was set aside.
    `lease/SHARD.json` only saves work: when two workers do one shard all the same, whichever commits first wins.
    Clocks of workers need not agree. A lease that ends further ahead than it is long was given by a clock that is ahead, and counts from
    when this worker saw it first; one of a clock that is behind ends too early, so that work is done twice and nothing else.
    """

    def __init__(self, store: Store, shards: Sequence[str], worker: str, cfg: LeaseConfig):
        self.store, self.worker, self.cfg = store, worker, cfg
        self.shards = list(shards)
        random.Random(worker).shuffle(self.shards)  # workers that look in different places seldom meet
        self.settled: set[str] = set()
        self.given_back: set[Lease] = set()
        self.seen: dict[str, tuple[str, float]] = {}  # the tag of a shard's lease, and when this worker saw it first
        self.lock = Lock()  # threads of this worker must not take one another's change for a rival's

    def pending(self) -> list[str]:
        """Shards neither done nor set aside, as far as the store's listing knows, in this worker's order."""
        for kind in ("commit", "dead"):
            self.settled.update(key.removeprefix(f"{kind}/").removesuffix(".json") for key in self.store.list(f"{kind}/"))
        return [shard for shard in self.shards if shard not in self.settled]

    def claim(self) -> Lease | None:
        """A lease on a shard that nobody works on; None when there is none at the moment."""
        return next((lease for shard in self.pending() if (lease := self.take(shard))), None)

    def take(self, shard: str) -> Lease | None:
        """A lease on this shard if it is free, or if its worker went silent."""
        key, found = f"lease/{shard}.json", self.store.get_tagged(f"lease/{shard}.json")
        if found is None:
            record = {"number": 1, "attempts": 0, "errors": []}
        else:
            record = json.loads(found[0])
            if self.is_held(shard, record, found[1]):
                return None
            if record["begun"]:
                record["errors"].append(f"worker {record['worker']} went silent")
            if record["attempts"] >= self.cfg.attempts:
                if not self.is_settled(shard):
                    self.set_aside(shard, record)
                return None
            record["number"] += 1
        record |= {"begun": False, **self.mine()}
        won = self.store.put_if(key, dump(record), found[1]) if found else self.store.put_new(key, dump(record))
        if not won or self.is_settled(shard):  # the listing may have been old, a read is not
            return None
        return Lease(shard, record["number"])

    def is_held(self, shard: str, record: Record, tag: str) -> bool:
        """Whether a lease has not run out; its worker writes it again, with another tag, as long as it lives."""
        now = time.time()
        if self.seen.get(shard, ("", 0.0))[0] != tag:
            self.seen[shard] = tag, now
        length = record.get("seconds", self.cfg.seconds)
        return now < min(record["expires"], self.seen[shard][1] + length)

    def mine(self) -> Record:
        return {"worker": self.worker, "expires": time.time() + self.cfg.seconds, "seconds": self.cfg.seconds}

    def is_settled(self, shard: str) -> bool:
        if self.store.exists(f"commit/{shard}.json") or self.store.exists(f"dead/{shard}.json"):
            self.settled.add(shard)
        return shard in self.settled

    def begin(self, lease: Lease) -> bool:
        """Counts an attempt: from here on a silence speaks against the shard. False when the lease has passed to another worker."""
        with self.lock:
            return self.update(lease, attempts=1, begun=True) is not None

    def renew(self, lease: Lease) -> bool:
        """Prolongs a lease; False when it was given back or has passed to another worker."""
        with self.lock:
            return lease not in self.given_back and self.update(lease) is not None

    def release(self, lease: Lease) -> None:
        """Gives a lease back as if it had never been taken: the worker must go, the shard is not to blame."""
        with self.lock:
            self.given_back.add(lease)
            self.update(lease, forgiven=True, begun=False, expires=0.0)

    def fail(self, lease: Lease, error: str) -> None:
        """Gives a lease back after a failed attempt; after the last one the shard is set aside."""
        with self.lock:
            self.given_back.add(lease)
            rest = time.time() + self.cfg.seconds / 20  # what failed may pass, with the store or on another machine
            record = self.update(lease, begun=False, expires=rest, error=f"worker {self.worker}: {error}")
        if record and record["attempts"] >= self.cfg.attempts:
            self.set_aside(lease.shard, record)

    def update(self, lease: Lease, attempts: int = 0, error: str = "", forgiven: bool = False, **changes: Any) -> Record | None:
        """Changes the lease's record if it is still this worker's, and returns it; an attempt that is forgiven does not count."""
        key = f"lease/{lease.shard}.json"
        data, tag = self.store.get_tagged(key) or (b"{}", "")
        record = json.loads(data)
        if (record.get("worker"), record.get("number")) != (self.worker, lease.number):
            return None
        counted = record["attempts"] + attempts - (forgiven and record["begun"])
        record |= {"attempts": counted, "errors": record["errors"] + [error] * bool(error), **self.mine(), **changes}
        return record if self.store.put_if(key, dump(record), tag) else None

    def set_aside(self, shard: str, record: Record) -> None:
        self.store.put_new(f"dead/{shard}.json", dump({"shard": shard, "attempts": record["attempts"], "errors": record["errors"]}))
        self.settled.add(shard)

    def commit(self, lease: Lease, record: Record) -> bool:
        """Says that a shard is done; False when another worker has said so before, whose record stays."""
        won = self.store.put_new(f"commit/{lease.shard}.json", dump({"shard": lease.shard, "worker": self.worker, **record}))
        self.settled.add(lease.shard)
        return won


def committed(store: Store, shard: str) -> Record | None:
    """The shard's commit record, read and not listed: a listing may be old."""
    found = store.get_tagged(f"commit/{shard}.json")
    return json.loads(found[0]) if found else None


def set_aside(store: Store, shard: str) -> Record | None:
    """How often and why a shard failed, if it was set aside."""
    found = store.get_tagged(f"dead/{shard}.json")
    return json.loads(found[0]) if found else None


def own_name() -> str:
    """A name for a worker that no other has."""
    return f"{socket.gethostname()}-{uuid.uuid4().hex[:6]}"


def records(store: Store, shards: Sequence[str]) -> tuple[dict[str, Record], dict[str, Record]]:
    """The commit records of all shards that are done and what is known of those set aside, by shard, in the order given."""
    with ThreadPoolExecutor(READERS) as pool:
        done = {name: record for name, record in zip(shards, pool.map(lambda n: committed(store, n), shards), strict=True) if record}
        rest = [name for name in shards if name not in done]
        dead = {name: record for name, record in zip(rest, pool.map(lambda n: set_aside(store, n), rest), strict=True) if record}
    return done, dead


def reasons(dead: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns the last error of each shard that was set aside."""
    return {name: record["errors"][-1] if record["errors"] else "" for name, record in dead.items()}


def finished(store: Store, shards: Sequence[str], lost: float = 0.0) -> tuple[dict[str, Record], dict[str, Record]]:
    """As `records`, of shards that are all settled.

    Raises ShardError where they are not, or where more than the share `lost` of them was set aside.
    """
    done, dead = records(store, shards)
    missing = [name for name in shards if name not in done and name not in dead]
    if missing:
        raise ShardError(f"job {store.uri}: {len(missing)} shards are not done, {missing[0]} among them; start workers again")
    if len(dead) > lost * len(shards):
        name, record = next(iter(dead.items()))
        raise ShardError(
            f"job {store.uri}: {len(dead)} of {len(shards)} shards were set aside where lost={lost} is allowed; "
            f"{name} after {record['attempts']} attempts: {record['errors'][-1]}. Delete dead/ and lease/ there to try again"
        )
    return done, dead


def dump(record: Record) -> bytes:
    return json.dumps(record, sort_keys=True).encode()
