"""Folders that pass through the store between a step and the nodes that work for it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from blip.digest import file_digest, value_digest
from blip.storage import Store, StoreError

INDEX = "index.json"


def send(folders: Mapping[str, Path], store: Store) -> None:
    """Writes the files of folders under their names, and last the index that makes them a whole."""
    found = files(folders)
    for name, path in found.items():
        store.put_file(f"files/{name}", path)
    store.put(INDEX, json.dumps({name: file_digest(path) for name, path in found.items()}, indent=1).encode())


def receive(store: Store, place: Callable[[str], Path]) -> None:
    """Reads what was sent into the folders that `place` gives for names. Raises StoreError where it is not there or not what was sent."""
    for name, expected in json.loads(store.get(INDEX)).items():
        folder, _, file = name.partition("/")
        path = place(folder) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        store.fetch(f"files/{name}", path)
        if file_digest(path) != expected:
            raise StoreError(f"{store.uri}/files/{name} is not what was sent: its SHA-256 is not {expected}")


def fingerprint(folders: Mapping[str, Path], *words: str) -> str:
    """Ten hexadecimal digits that stand for words and for the files of folders, wherever the folders lie."""
    digests = {name: file_digest(path) for name, path in files(folders).items()}
    return value_digest([words, digests])[:10]


def files(folders: Mapping[str, Path]) -> dict[str, Path]:
    """All files of the folders by NAME/PATH, in order."""
    found = {f"{name}/{path.relative_to(root).as_posix()}": path for name, root in folders.items() for path in root.rglob("*")}
    return {name: found[name] for name in sorted(found) if found[name].is_file()}
