"""A test of what a store supports, run before any work depends on it."""

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from blip.storage.store import Store, StoreError, UnusableStoreError

WRITERS = 6
ROUNDS = 3


def probe(store: Store, conditional: bool = True) -> None:
    """Writes, reads, lists and deletes an object; with `conditional`, also tests the conditional writes under a race.

    Raises StoreError, which names what the store lacks. Some S3 servers accept the headers of conditional writes and
    ignore them.
    """
    check_writable(store)
    if conditional:
        with ThreadPoolExecutor(WRITERS) as pool:
            for _ in range(ROUNDS):
                check_conditional_writes(store, pool)


def check_writable(store: Store) -> None:
    key, data = f"probe-{uuid.uuid4().hex}", b"written by a probe"
    try:
        store.put(key, data)
    except UnusableStoreError:
        raise
    except StoreError as e:
        raise StoreError(f"store {store.uri} cannot be written: {e}") from e
    try:
        if store.get(key) != data or key not in store.list(key):
            raise StoreError(f"store {store.uri} does not return or list what was just written to it")
    finally:
        store.delete(key)


def check_conditional_writes(store: Store, pool: ThreadPoolExecutor) -> None:
    key = f"probe-{uuid.uuid4().hex}"
    try:
        race(store, pool, key, "new", lambda data: store.put_new(key, data))
        _, tag = store.get_tagged(key) or (b"", "")
        race(store, pool, key, "replaced", lambda data: store.put_if(key, data, tag))
    finally:
        store.delete(key)


def race(store: Store, pool: ThreadPoolExecutor, key: str, kind: str, write: Callable[[bytes], bool]) -> None:
    """Runs `write` in all threads at once. Raises StoreError unless exactly one of them wins."""
    start = threading.Barrier(WRITERS)
    contents = [f"{kind} by writer {i}".encode() for i in range(WRITERS)]

    def compete(data: bytes) -> bool:
        start.wait()
        return write(data)

    try:
        winners = [data for data, won in zip(contents, pool.map(compete, contents), strict=True) if won]
    except StoreError as e:
        raise StoreError(f"store {store.uri} refuses conditional writes: {e}") from e
    if len(winners) != 1 or store.get(key) != winners[0]:
        raise StoreError(
            f"store {store.uri} lacks conditional writes: {len(winners)} of {WRITERS} writers won a race for one "
            f"object ({kind}); several workers need a store that has them: a local folder, AWS S3, or Ceph RGW with an "
            "unversioned bucket"
        )
