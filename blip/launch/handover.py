"""Folders that pass through the store between a step and the nodes that work for it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from blip.digest import file_digest, value_digest
from blip.storage import Store, StoreError, check_key

INDEX = "index.json"


def send(folders: Mapping[str, Path], store: Store) -> None:
    """Writes the files of folders under their names, and last the index that makes them a whole."""
    found = files(folders)
    for name, path in found.items():
        store.put_file(f"files/{name}", path)
    store.put(INDEX, json.dumps({name: file_digest(path) for name, path in found.items()}, indent=1).encode())


def receive(store: Store, place: Callable[[str], Path]) -> None:
    """Reads what was sent into the folders that `place` returns for names; no file is written outside of them.

    Raises StoreError where it is not there or not what was sent.
    """
    for name, expected in read_index(store).items():
        folder, _, file = name.partition("/")
        path = place(folder) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        store.fetch(f"files/{name}", path)
        if file_digest(path) != expected:
            raise StoreError(f"{store.uri}/files/{name} is not what was sent: its SHA-256 is not {expected}")


def read_index(store: Store) -> dict[str, str]:
    """Returns the digest of every file by NAME/PATH. Raises StoreError for an index that this module did not write."""
    where = f"{store.uri}/{INDEX}"
    try:
        index = json.loads(store.get(INDEX))
    except ValueError:
        raise StoreError(f"{where} is not JSON: delete {store.uri}, so that it is sent again") from None
    if not isinstance(index, dict) or not all(isinstance(value, str) for value in index.values()):
        raise StoreError(f"{where} is not an index of files and digests: delete {store.uri}, so that it is sent again")
    for name in index:
        check_key(name)
        if "/" not in name or "\0" in name:
            raise StoreError(f"{where}: {name!r} is not the name of a file in a folder")
    return index


def remove(store: Store) -> None:
    """Deletes all that was handed over below a store's URI."""
    for key in store.list():
        store.delete(key)


def fingerprint(folders: Mapping[str, Path], *words: str) -> str:
    """Ten hexadecimal digits that stand for words and for the files of folders, wherever the folders lie."""
    digests = {name: file_digest(path) for name, path in files(folders).items()}
    return value_digest([words, digests])[:10]


def files(folders: Mapping[str, Path]) -> dict[str, Path]:
    """All files of the folders by NAME/PATH, in order."""
    found = {f"{name}/{path.relative_to(root).as_posix()}": path for name, root in folders.items() for path in root.rglob("*")}
    return {name: found[name] for name in sorted(found) if found[name].is_file()}
