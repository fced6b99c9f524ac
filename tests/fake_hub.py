"""A model hub on the loopback, which the hub's own client takes for the real one."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub.constants
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_FROM = 100
"""Bytes from which the hub keeps a file in its large-file storage, and knows its SHA-256."""


class FakeHub(ThreadingHTTPServer):
    """Serves models' files by name. Faults are set by file name."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.models: dict[str, dict[str, bytes]] = {}
        self.status: dict[str, int] = {}
        """The status of every answer about a model, in place of its content."""
        self.stall: dict[str, int] = {}
        """Numbers of bytes after which nothing more of a file is sent, and the connection stays open."""
        self.damaged: set[str] = set()
        """Files that are sent with another first byte."""
        self.requests: list[tuple[str, str, str]] = []
        """Method, path and range of each request."""
        self.tokens: set[str] = set()
        """What was sent as Authorization."""
        self.content_server: FakeHub | None = None
        """Another server, to which requests for large files are passed on, as the real hub does."""

    def downloads(self) -> list[tuple[str, str]]:
        """Returns the names and ranges of the files that were sent."""
        return [
            (path.rpartition("/")[2], span)
            for method, path, span in self.requests
            if method == "GET" and "/resolve/" in path
        ]


class HubHandler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path, self.headers.get("Range", "")))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        api = path.startswith("/api/models/")
        name, _, rest = path.removeprefix("/api/models/").strip("/").partition("/revision/" if api else "/resolve/")
        if status := self.server.status.get(name):
            self.refuse(status)
        elif name not in self.server.models:
            self.refuse(404)
        elif api:
            self.describe(name)
        else:
            self.send_file(name, rest.partition("/")[2])

    def refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", "RepoNotFound" if status == 404 else "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def describe(self, name: str) -> None:
        siblings = []
        for file, data in self.server.models[name].items():
            sibling = {"rfilename": file, "size": len(data), "blobId": git_digest(data)}
            if len(data) >= LFS_FROM:
                sibling["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(sibling)
        self.send(json.dumps({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}).encode(), 200)

    def send_file(self, name: str, file: str) -> None:
        data = self.server.models[name].get(file)
        if data is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        etag = hashlib.sha256(data).hexdigest() if len(data) >= LFS_FROM else git_digest(data)
        if self.server.content_server and len(data) >= LFS_FROM:
            self.send_response(302)
            self.send_header("Location", self.server.content_server.address + self.path)
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if file in self.server.damaged:
            data = bytes([data[0] ^ 1]) + data[1:]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send(data[start:], 206 if start else 200, etag, len(data), self.server.stall.get(file))

    def send(self, body: bytes, status: int, etag: str = "", size: int = 0, until: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if etag:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Size", str(size))
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return
        with suppress(ConnectionError):  # the client may be killed
            self.wfile.write(body[:until])
            if until is not None:
                self.rfile.read(1)

    def log_message(self, format: str, *args: object) -> None: ...


def git_digest(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@contextmanager
def fake_hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Yields a hub, which this process then takes for the real one, with an empty cache in `home`."""
    with FakeHub() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        use_hub(home, server.address, monkeypatch)
        yield server
        server.shutdown()


def use_hub(home: Path, address: str, monkeypatch: pytest.MonkeyPatch, offline: bool = False) -> None:
    """Lets the hub's client in this process use an address and an empty cache."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
