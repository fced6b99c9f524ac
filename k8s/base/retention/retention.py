"""Deletes what is older than its days from the stores of runs: `retention.py STORE 'FOLDER ...' 'FOLDER=DAYS ...'`.

The second argument names the stores of runs, as folders of STORE, itself by a dot; the third what lies in each of them,
where `name*` are all folders whose names begin so.
"""

import sys

from blip.storage import Store, open_store

DAY = 24 * 3600


def days_by_folder(text: str) -> dict[str, int]:
    """Returns the days by folder. Exits with a message if a word is not FOLDER=DAYS, before anything is deleted."""
    found = {}
    for rule in text.split():
        folder, _, days = rule.partition("=")
        if not folder.strip("/*") or "*" in folder[:-1] or not days.isdecimal() or int(days) < 1:
            raise SystemExit(f"{rule!r} is no rule: write FOLDER=DAYS, with a folder below the store and a day or more")
        found[folder.strip("/")] = int(days)
    return found


def below(store: Store, folder: str) -> Store:
    """Returns the folder of a store; a dot is the store itself."""
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    return store.join(*parts) if parts else store


def delete_old(uri: str, stores: str, rules: str) -> dict[str, int]:
    """Deletes the old objects of each folder; returns their numbers by folder. Raises StoreError."""
    wanted = days_by_folder(rules)
    deleted = {}
    for place in stores.split():
        for folder, days in wanted.items():
            store = below(open_store(uri), place)
            prefix = folder.removesuffix("*") if folder.endswith("*") else f"{folder}/"
            old = [key for key, age in store.ages(prefix).items() if age > days * DAY]
            for key in old:
                store.delete(key)
            deleted[f"{store.uri}/{folder}"] = len(old)
    return deleted


if __name__ == "__main__":
    for folder, count in delete_old(*sys.argv[1:]).items():
        sys.stdout.write(f"{folder}: {count} objects deleted\n")
