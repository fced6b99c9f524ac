"""Deletes what is older than its days from folders of the store: `retention.py STORE FOLDER=DAYS...`."""

import sys
from collections.abc import Sequence

from blip.storage import open_store

DAY = 24 * 3600


def parse(rules: Sequence[str]) -> dict[str, float]:
    """Returns the days by folder. Exits with a message if a rule is not FOLDER=DAYS, before anything is deleted."""
    found = {}
    for rule in rules:
        folder, _, days = rule.partition("=")
        if not folder.strip("/") or not days.isdecimal() or int(days) < 1:
            raise SystemExit(f"{rule!r} is no rule: write FOLDER=DAYS, with a folder below the store and a day or more")
        found[folder.strip("/")] = int(days)
    return found


def delete_old(uri: str, rules: Sequence[str]) -> dict[str, int]:
    """Deletes the old objects of each folder; returns their numbers by folder. Raises StoreError."""
    deleted = {}
    for folder, days in parse(rules).items():
        store = open_store(uri).join(*folder.split("/"))
        old = [key for key, age in store.ages().items() if age > days * DAY]
        for key in old:
            store.delete(key)
        deleted[folder] = len(old)
    return deleted


if __name__ == "__main__":
    for folder, count in delete_old(sys.argv[1], sys.argv[2:]).items():
        sys.stdout.write(f"{folder}: {count} objects deleted\n")
