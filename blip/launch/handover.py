"""Transfer of folders through the store, between a step and the nodes of its job."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from blip.digest import file_digest, value_digest
from blip.storage import Store, StoreError, check_key

INDEX_FILE = "index.json"


def upload_folders(folders: Mapping[str, Path], store: Store) -> None:
    """Uploads the files of folders by name, and last an index of their digests."""
    found = files_of(folders)
    for name, path in found.items():
        store.put_file(f"files/{name}", path)
    store.put(INDEX_FILE, json.dumps({name: file_digest(path) for name, path in found.items()}, indent=1).encode())


def download_folders(store: Store, place: Callable[[str], Path]) -> None:
    """Downloads uploaded folders to the paths that `place` returns for their names; writes no file outside of them.

    Raises StoreError if the index or a file is missing or invalid.
    """
    for name, expected in read_index(store).items():
        folder, _, file = name.partition("/")
        path = place(folder) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        store.fetch(f"files/{name}", path)
        if file_digest(path) != expected:
            raise StoreError(f"{store.uri}/files/{name} does not match its SHA-256 {expected}")


def read_index(store: Store) -> dict[str, str]:
    """Returns the SHA-256 of every file by FOLDER/PATH. Raises StoreError if the index is not valid."""
    where = f"{store.uri}/{INDEX_FILE}"
    try:
        index = json.loads(store.get(INDEX_FILE))
    except ValueError:
        raise StoreError(f"{where} is not JSON: delete {store.uri}, and it is sent again") from None
    if not isinstance(index, dict) or not all(isinstance(value, str) for value in index.values()):
        raise StoreError(f"{where} is not an index of files and digests: delete {store.uri}, and it is sent again")
    for name in index:
        check_key(name)
        if "/" not in name or "\0" in name:
            raise StoreError(f"{where}: {name!r} is not the name of a file in a folder")
    return index


def delete_all(store: Store) -> None:
    """Deletes all objects of a store."""
    for key in store.list():
        store.delete(key)


def fingerprint(folders: Mapping[str, Path], *words: str) -> str:
    """Returns ten hexadecimal digits of a digest of `words` and of the folders' files, whatever their location."""
    digests = {name: file_digest(path) for name, path in files_of(folders).items()}
    return value_digest([words, digests])[:10]


def files_of(folders: Mapping[str, Path]) -> dict[str, Path]:
    """Returns all files of the folders by FOLDER/PATH, sorted."""
    found: dict[str, Path] = {}
    for name, root in folders.items():
        for path in root.rglob("*"):
            if path.is_file():
                found[f"{name}/{path.relative_to(root).as_posix()}"] = path
    return {name: found[name] for name in sorted(found)}
