"""Puts a database's dump into the store, and deletes the oldest ones: `backup.py DUMP STORE`."""

import sys
from datetime import UTC, datetime
from pathlib import Path

from blip.storage import open_store

KEPT = 14


def keep(dump: Path, uri: str, now: datetime) -> list[str]:
    """Returns the keys of the dumps that are in the store afterwards, oldest first."""
    if not dump.stat().st_size:
        raise SystemExit(f"{dump} is empty: the database was not dumped, and no older dump is deleted")
    store = open_store(uri)
    store.put_file(f"{now:%Y-%m-%dT%H%M%SZ}{dump.suffix}", dump)
    dumps = store.list()
    for key in dumps[:-KEPT]:
        store.delete(key)
    return dumps[-KEPT:]


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2], datetime.now(UTC))
