"""A worker of a shard queue: it fetches the next shard and uploads the last output while it processes one."""

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

from blip.digest import file_digest
from blip.shards.manifest import Shard
from blip.shards.reading import local_copy
from blip.shards.verification import ShardError, missing_shard, verify_shard
from blip.storage import MissingKeyError, Store, StoreError, scratch
from blip.workers.queue import Lease, ShardQueue, dump

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
"""The longest pause between two attempts to claim a shard that another worker has leased."""


@dataclass
class Output:
    """The output file of a shard, and further fields of its commit record."""

    file: Path
    record: dict[str, Any]


@dataclass
class Work:
    """A leased shard: its local file, an empty folder for its output, and the cleanup of both."""

    lease: Lease
    shard: Shard
    path: Path
    folder: Path
    cleanup: ExitStack
    begun: bool = False


Process = Callable[[Shard, Path, Path, Counter[str]], Output]
"""Maps `(shard, its local file, empty folder, tally)` to the output, deterministically; updates the tally."""


@dataclass
class Worker:
    """Processes the shards of a queue. Reads them from `source`, writes outputs to the queue's store under `data/`.

    A shard that cannot be read fails and is retried, by this worker or another. Any other error ends the worker after
    it has released its leases. SystemExit and KeyboardInterrupt release them without counting an attempt.
    """

    queue: ShardQueue
    source: Store
    shards: Mapping[str, Shard]
    process: Process
    report: float = 1.0
    """Seconds between two progress reports."""
    before: Callable[[], None] = lambda: None
    """Called before each shard; an exception ends the worker without counting an attempt at the shard."""
    tally: Counter[str] = field(default_factory=Counter)
    prefetch: bool = True
    """Whether to lease the next shard while one is processed; off where shards are few and other workers would idle."""
    reports: Store | None = None
    """The store of the progress reports, `worker/NAME.json`; None for the queue's store."""
    began: float = field(default_factory=time.monotonic)
    """The start of this process's work (`time.monotonic`); shared by the workers of several queues in one process."""
    held: dict[str, Work] = field(default_factory=dict)
    over: Event = field(default_factory=Event)

    def run(self) -> None:
        """Returns when every shard is done or set aside."""
        heart = Thread(target=self.heartbeat, daemon=True)
        heart.start()
        with ExitStack() as stack:
            stack.push(self.release_all)
            stack.callback(self.stop_heartbeat, heart)  # a released lease must not be renewed
            fetcher = stack.enter_context(ThreadPoolExecutor(1))
            uploader = stack.enter_context(ThreadPoolExecutor(1))
            stack.callback(self.over.set)  # ends the fetcher first, so that `held` is final when leases are released
            following = fetcher.submit(self.claim_next)
            upload: Future[None] | None = None
            while (work := following.result()) is not None:
                if self.prefetch:
                    following = fetcher.submit(self.claim_next)
                self.before()
                upload = self.do(work, uploader, upload) or upload
                if not self.prefetch:
                    following = fetcher.submit(self.claim_next)
            if upload:
                upload.result()

    def do(self, work: Work, uploader: ThreadPoolExecutor, previous: Future[None] | None) -> Future[None] | None:
        """Processes one shard and returns the upload of its output, or None if there is no output."""
        work.begun = self.queue.begin(work.lease)
        if not work.begun:
            self.close(work)
            return None
        began = time.monotonic()
        try:
            output = self.process(work.shard, work.path, work.folder, self.tally)
        except ShardError as e:
            self.queue.fail(work.lease, str(e))
            self.close(work)
            return None
        output.record["seconds"] = round(time.monotonic() - began, 3)
        if previous:
            previous.result()  # one upload at a time bounds the disk space of waiting outputs
        upload = uploader.submit(self.publish, work, output)
        upload.add_done_callback(self.end_if_failed)
        return upload

    def end_if_failed(self, upload: Future[None]) -> None:
        """Ends the wait for further shards, which would last for ever if only the shard of this upload is left."""
        if upload.exception():
            self.over.set()

    def claim_next(self) -> Work | None:
        """Returns the next shard, leased, fetched and verified; None when none is left.

        Waits while other workers hold all shards that are left.
        """
        pause = 0.1
        while not self.over.is_set():
            lease = self.queue.claim()
            if lease:
                work = self.fetch(lease)
                if work:
                    return work
            elif not self.queue.pending():
                return None
            else:
                self.over.wait(min(pause, POLL_SECONDS, self.queue.cfg.seconds / 4))
                pause *= 2
        return None

    def fetch(self, lease: Lease) -> Work | None:
        """Fetches and verifies a leased shard; one that cannot be read counts as a failed attempt and returns None."""
        shard = self.shards[lease.shard]
        with ExitStack() as stack:
            folder = stack.enter_context(scratch("shard"))
            work = Work(lease, shard, folder, folder, stack)
            self.held[lease.shard] = work  # from here on the heartbeat renews its lease
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
        """Uploads the output, then commits it.

        The object's name ends in the digest of the content: different outputs of one shard do not overwrite each other,
        and equal ones share an object.
        """
        store = self.queue.store
        digest, size = file_digest(output.file), output.file.stat().st_size
        name = f"data/{work.shard.name.removesuffix('.tar')}-{digest[:16]}{output.file.suffix}"
        store.put_file(name, output.file)
        store.read(name, size - 1, 1)  # raises StoreError if the object is truncated
        self.queue.commit(work.lease, {"name": name, "sha256": digest, "bytes": size, **output.record})
        self.tally["shards"] += 1
        self.close(work)

    def close(self, work: Work) -> None:
        self.held.pop(work.lease.shard, None)
        work.cleanup.close()

    def release_all(self, kind: type[BaseException] | None, error: BaseException | None, _trace) -> None:
        """Releases all leases; a shard in progress counts a failed attempt if it may have caused the error."""
        is_failure = kind is not None and issubclass(kind, Exception) and not issubclass(kind, StoreError)
        for work in list(self.held.values()):
            if work.begun and is_failure:
                self.queue.fail(work.lease, f"{type(error).__name__}: {error}")
            else:
                self.queue.release(work.lease)
            self.close(work)

    def stop_heartbeat(self, heart: Thread) -> None:
        self.over.set()
        heart.join()

    def heartbeat(self) -> None:
        """Renews the leases and writes progress reports until the worker ends."""
        reports = self.reports or self.queue.store
        renewal = self.queue.cfg.seconds / 4
        renewed = reported = -math.inf
        while True:
            ending = self.over.wait(min(self.report, renewal) / 2)
            now = time.monotonic() - self.began
            try:
                if now - renewed >= renewal:
                    renewed = now
                    for work in list(self.held.values()):
                        self.queue.renew(work.lease)
                if now - reported >= self.report or ending:
                    reported = now
                    reports.put(f"worker/{self.queue.worker}.json", dump({"seconds": round(now, 3), **self.tally}))
            except StoreError as e:
                log.warning("worker %s could not report: %s", self.queue.worker, e)
            if ending:
                return
