"""Puts a dump of MLflow's database into the store, and lets go of the oldest ones: `backup.py DUMP STORE`."""

import sys
from datetime import UTC, datetime
from pathlib import Path

from blip.storage import open_store

KEPT = 14


def keep(dump: Path, uri: str, now: datetime) -> list[str]:
    """The keys of the dumps that are in the store afterwards, oldest first."""
    store = open_store(uri)
    store.put_file(f"{now:%Y-%m-%dT%H%M%SZ}.dump", dump)
    dumps = store.list()
    for key in dumps[:-KEPT]:
        store.delete(key)
    return dumps[-KEPT:]


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2], datetime.now(UTC))
