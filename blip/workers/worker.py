"""A worker: pulls shards until none is left, reading the next one and writing the last one while it computes."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

from blip.data.manifest import Shard
from blip.data.shards import ShardError, local_copy, missing_shard, verify_shard
from blip.digest import file_digest
from blip.storage import MissingKeyError, Store, StoreError, scratch
from blip.workers.queue import Lease, ShardQueue, dump

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
"""The longest pause before looking again for a shard whose worker went silent."""


@dataclass
class Output:
    """Files made of a shard: the file itself, and by ending what lies beside it; and what the commit record should say."""

    file: Path
    beside: Mapping[str, Path]
    record: dict[str, Any]


@dataclass
class Work:
    """A shard in hand: its lease, its local file, and what goes when it is done."""

    lease: Lease
    shard: Shard
    path: Path
    folder: Path
    cleanup: ExitStack
    begun: bool = False


Process = Callable[[Shard, Path, Path, Counter[str]], Output]
"""`(shard, its local file, empty folder, tally)` to its output: the same bytes for the same shard. Counts as it goes in the tally."""


@dataclass
class Worker:
    """Processes the shards of a queue. They come from `source`, output goes to the queue's store under `data/`.

    A shard that cannot be read fails and is tried again, here or elsewhere; any other error ends the worker after its leases are given
    back. A worker that is asked to go (SystemExit, KeyboardInterrupt) gives them back without blame.
    """

    queue: ShardQueue
    source: Store
    shards: Mapping[str, Shard]
    process: Process
    report: float = 1.0
    """Seconds between two progress reports."""
    before: Callable[[], None] = lambda: None
    """Called before each shard; what it raises ends the worker, with blame for nobody."""
    tally: Counter[str] = field(default_factory=Counter)
    ahead: bool = True
    """Whether it takes the next shard while it works on one; where shards are few and long, it would keep that from an idle worker."""
    reports: Store | None = None
    """The store of its progress reports, `worker/NAME.json`; the queue's store if none."""
    began: float = field(default_factory=time.monotonic)
    """When this process began to work (`time.monotonic`), for one that works off several queues."""
    held: dict[str, Work] = field(default_factory=dict)
    over: Event = field(default_factory=Event)

    def run(self) -> None:
        """Returns when every shard is done or set aside."""
        heart = Thread(target=self.heartbeat, daemon=True)
        heart.start()
        with ExitStack() as stack:
            stack.push(self.release_all)
            stack.callback(self.stop_heartbeat, heart)  # what is given back must not be renewed
            fetcher, uploader = (stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
            stack.callback(self.over.set)  # ends the fetcher, so that what is held at the end is known
            following, last = fetcher.submit(self.next), None
            while (work := following.result()) is not None:
                if self.ahead:
                    following = fetcher.submit(self.next)
                self.before()
                last = self.do(work, uploader, last) or last
                if not self.ahead:
                    following = fetcher.submit(self.next)
            if last:
                last.result()

    def do(self, work: Work, uploader: ThreadPoolExecutor, last: Future[None] | None) -> Future[None] | None:
        work.begun = self.queue.begin(work.lease)
        if not work.begun:
            return self.close(work)
        began = time.monotonic()
        try:
            output = self.process(work.shard, work.path, work.folder, self.tally)
        except ShardError as e:
            self.queue.fail(work.lease, str(e))
            return self.close(work)
        output.record["seconds"] = round(time.monotonic() - began, 3)
        if last:
            last.result()  # one upload at a time: no more output waits than is being made
        return uploader.submit(self.publish, work, output)

    def next(self) -> Work | None:
        """The next shard, leased, fetched and verified; waits while others have all that is left; None when nothing is left."""
        pause = 0.1
        while not self.over.is_set():
            if lease := self.queue.claim():
                if work := self.fetch(lease):
                    return work
            elif not self.queue.pending():
                return None
            else:
                self.over.wait(min(pause, POLL_SECONDS, self.queue.cfg.seconds / 4))
                pause *= 2
        return None

    def fetch(self, lease: Lease) -> Work | None:
        shard = self.shards[lease.shard]
        with ExitStack() as stack:
            folder = stack.enter_context(scratch("shard"))
            work = Work(lease, shard, folder, folder, stack)
            self.held[lease.shard] = work  # from here on its lease is renewed
            uri = f"{self.source.uri}/{shard.name}"
            try:
                work.path = stack.enter_context(local_copy(self.source, shard.name))
                verify_shard(work.path, shard, uri)
            except (ShardError, MissingKeyError) as e:
                self.queue.begin(lease)
                self.queue.fail(lease, str(missing_shard(shard, uri) if isinstance(e, MissingKeyError) else e))
                del self.held[lease.shard]
                return None
            work.cleanup = stack.pop_all()
            return work

    def publish(self, work: Work, output: Output) -> None:
        """Writes the output under a name of its own, then says where it is: nobody sees it before, nobody changes it after.

        The name ends in the digest of the file: attempts that differ write different objects, attempts that do not write the same one.
        """
        store = self.queue.store
        digest, size = file_digest(output.file), output.file.stat().st_size
        stem = f"data/{work.shard.name.removesuffix('.tar')}-{digest[:16]}"
        for ending, path in output.beside.items():
            store.put_file(stem + ending, path)
        name = stem + output.file.suffix
        store.put_file(name, output.file)
        store.read(name, size - 1, 1)  # raises where less has arrived
        self.queue.commit(work.lease, {"name": name, "sha256": digest, "bytes": size, **output.record})
        self.tally["shards"] += 1
        self.close(work)

    def close(self, work: Work) -> None:
        self.held.pop(work.lease.shard, None)
        work.cleanup.close()

    def release_all(self, kind: type[BaseException] | None, error: BaseException | None, _trace) -> None:
        """Gives back what is held: with blame where the shard in hand, and not the store, may have ended the worker."""
        for work in list(self.held.values()):
            if work.begun and kind is not None and issubclass(kind, Exception) and not issubclass(kind, StoreError):
                self.queue.fail(work.lease, f"{kind.__name__}: {error}")
            else:
                self.queue.release(work.lease)
            self.close(work)

    def stop_heartbeat(self, heart: Thread) -> None:
        self.over.set()
        heart.join()

    def heartbeat(self) -> None:
        """Renews the leases and reports, until the end."""
        renew, reports = self.queue.cfg.seconds / 4, self.reports or self.queue.store
        renewed = told = -math.inf
        while True:
            ending, now = self.over.wait(min(self.report, renew) / 2), time.monotonic() - self.began
            try:
                if now - renewed >= renew:
                    renewed = now
                    for work in list(self.held.values()):
                        self.queue.renew(work.lease)
                if now - told >= self.report or ending:
                    told = now
                    reports.put(f"worker/{self.queue.worker}.json", dump({"seconds": round(now, 3), **self.tally}))
            except StoreError as e:
                log.warning("worker %s could not report: %s", self.queue.worker, e)
            if ending:
                return
