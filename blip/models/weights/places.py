"""Places that hold the files of a model: a folder, a folder of a store, the hub's cache, and the hub."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from io import BufferedWriter, FileIO
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    FileMetadataError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from blip.digest import file_digest
from blip.models.weights.content import NotHereError
from blip.models.weights.files import first_line
from blip.models.weights.mirror import MIRROR_RECORD, check_digest, copy_of_mirror, read_mirror_record
from blip.storage import Store, StoreError, scratch, writing

DENIED = (401, 403)
"""Statuses of the hub for a model that needs a token; it may answer 401 for a name that is nobody's, too."""
NOT_FOUND = 404


class Place(ABC):
    """A place with files in one folder; methods raise StoreError where trying again can help."""

    where: str
    """The place in messages."""

    @abstractmethod
    def names(self) -> Set[str]:
        """Returns the names of the files."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Returns the content of a small file."""

    @abstractmethod
    @contextmanager
    def opened(self, names: Sequence[str]) -> Iterator[Path]:
        """Yields a local folder with these files."""


class StoreFolder(Place):
    """A folder of a store, or of this machine. Files in its record, if it has one, are verified."""

    def __init__(self, store: Store, where: str = ""):
        self.store, self.where = store, where or store.uri
        self.record = read_mirror_record(store)

    def names(self) -> Set[str]:
        here = self.store.path(MIRROR_RECORD)
        if here:
            return file_names(here.parent)
        return {key for key in self.store.list() if key.count("/") <= 1}

    def read(self, name: str) -> bytes:
        return self.store.get(name)

    @contextmanager
    def opened(self, names: Sequence[str]) -> Iterator[Path]:
        known = {name: self.record.files[name] for name in names if self.record and name in self.record.files}
        here = self.store.path(MIRROR_RECORD)
        if here:
            for name, expected in known.items():
                check_digest(here.parent / name, expected, str(here.parent / name))
            yield here.parent
        elif known.keys() == set(names):
            yield copy_of_mirror(self.store, known)
        else:
            with scratch("weights") as folder:
                for name in names:
                    (folder / name).parent.mkdir(exist_ok=True)
                    self.store.fetch(name, folder / name)
                yield folder


def file_names(folder: Path) -> set[str]:
    """Returns the names of the files in a folder and in its folders, an empty set if there is no such folder."""
    found = [path for pattern in ("*", "*/*") for path in folder.glob(pattern)]
    return {path.relative_to(folder).as_posix() for path in found if path.is_file()}


class Repository(Place):
    """A model of the hub, to be copied elsewhere."""

    revision: str
    """The commit."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Returns the size of a file in bytes."""

    @abstractmethod
    def obtain(self, name: str, partial: Path, advance: Callable[[int], object]) -> Path:
        """Returns a local copy of a file, which is `partial` if it had to be downloaded.

        A download goes on where an interrupted one to the same path ended. `advance` is called with numbers of bytes
        as they come. Raises StoreError if the file is not what the hub says it is; it is removed then.
        """


class CachedModel(Repository):
    """A model in the hub's cache, where not all of its files need be. Raises NotHereError if it is not there."""

    def __init__(self, name: str, revision: str = ""):
        self.where = f"the hub's cache {constants.HF_HUB_CACHE}"
        try:
            self.folder = Path(snapshot_download(name, revision=revision or None, local_files_only=True))
        except (OSError, ValueError):
            raise NotHereError(f"{self.where} does not have it") from None
        self.revision = self.folder.name

    def names(self) -> Set[str]:
        return file_names(self.folder)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    @contextmanager
    def opened(self, names: Sequence[str]) -> Iterator[Path]:  # noqa: ARG002 (all files are in place)
        yield self.folder

    def size(self, name: str) -> int:
        return (self.folder / name).stat().st_size

    def obtain(self, name: str, partial: Path, advance: Callable[[int], object]) -> Path:  # noqa: ARG002
        advance(self.size(name))
        return self.folder / name


class HubModel(Repository):
    """A model on the hub, at one commit. The hub's cache keeps what is opened.

    Raises NotHereError if the hub does not give it or must not be asked.
    """

    def __init__(self, name: str, revision: str = ""):
        self.name, self.where = name, f"the hub {constants.ENDPOINT}"
        if constants.HF_HUB_OFFLINE:
            raise NotHereError("the hub is not asked, since HF_HUB_OFFLINE is set")
        with hub_errors(name):
            api = HfApi(endpoint=constants.ENDPOINT)
            info = api.model_info(name, revision=revision or None, files_metadata=True)
        self.revision = info.sha or ""
        self.files = {file.rfilename: file for file in info.siblings or []}

    def names(self) -> Set[str]:
        return self.files.keys()

    def read(self, name: str) -> bytes:
        with hub_errors(self.name):
            return Path(hf_hub_download(self.name, name, revision=self.revision)).read_bytes()

    @contextmanager
    def opened(self, names: Sequence[str]) -> Iterator[Path]:
        with hub_errors(self.name):
            folders = {Path(hf_hub_download(self.name, name)).parents[name.count("/")] for name in names}
        if len(folders) > 1:
            raise StoreError(f"{self.name}: the hub's commit changed while its files were fetched; try again")
        yield folders.pop()

    def size(self, name: str) -> int:
        return self.files[name].size or 0

    def obtain(self, name: str, partial: Path, advance: Callable[[int], object]) -> Path:
        cached = try_to_load_from_cache(self.name, name, revision=self.revision)
        if isinstance(cached, str) and self.is_whole(name, Path(cached)):
            advance(self.size(name))
            return Path(cached)
        url = hf_hub_url(self.name, name, revision=self.revision)
        with hub_errors(self.name), writing(partial), CountedFile(partial, advance) as file:
            found = get_hf_file_metadata(url)
            held = file.tell()
            advance(held)
            headers = build_hf_headers()
            if urlsplit(found.location).netloc != urlsplit(url).netloc:
                headers.pop("authorization", None)  # the token is for the hub, not for where it keeps large files
            http_get(found.location, file, resume_size=held, headers=headers, expected_size=found.size)
        if not self.is_whole(name, partial):
            partial.unlink()
            raise StoreError(f"{self.name}/{name}: what came is not what the hub says it is; try again")
        return partial

    def is_whole(self, name: str, path: Path) -> bool:
        """Returns whether a file has the digest that the hub gives: SHA-256 of large files, git's own of others."""
        file = self.files[name]
        if file.lfs:
            return file_digest(path) == file.lfs.sha256
        return file.blob_id in (None, git_digest(path.read_bytes()))


def git_digest(data: bytes) -> str:
    """Returns the SHA-1 by which git knows a file of this content."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class CountedFile(BufferedWriter):
    """A file to append to, which reports the number of bytes of each write."""

    def __init__(self, path: Path, advance: Callable[[int], object]):
        super().__init__(FileIO(path, "a"))
        self.advance = advance

    def write(self, buffer: bytes) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.advance(len(buffer))
        return super().write(buffer)


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turns errors of the hub's client into NotHereError, or into StoreError if trying again can help."""
    try:
        yield
    except (NotHereError, StoreError):
        raise
    except Exception as error:  # the hub's client passes on errors of its libraries
        cause = (isinstance(error, LocalEntryNotFoundError) and error.__cause__) or error
        if can_pass(cause):
            raise StoreError(
                f"{name}: the hub {constants.ENDPOINT} does not answer ({first_line(cause)}); try again, or name a "
                "folder or a store's URI"
            ) from error
        raise NotHereError(f"the hub {constants.ENDPOINT} does not give it ({refusal(cause)})") from error


def refusal(error: BaseException) -> str:
    """Returns a phrase on why the hub does not give a model."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if status in DENIED:
        return f"status {status}: there is no such model, or it needs a token in HF_TOKEN that may read it"
    if status == NOT_FOUND:
        return f"status {status}: there is no such model or file"
    return f"status {status}" if status else first_line(error)


def can_pass(error: BaseException) -> bool:
    """Returns whether a request to the hub may succeed on retry; not if the hub denies access or has no such file."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return not isinstance(error, HFValidationError | LocalEntryNotFoundError | OfflineModeIsEnabled | FileMetadataError)
