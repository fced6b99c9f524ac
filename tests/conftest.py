"""An S3 server on the loopback, and a proxy to it that fails on demand."""

import logging
import os
import socket
import struct
import time
import uuid
from collections import deque
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import boto3
import pytest

# Processes that tests start anywhere find `components` and `pipelines`, which are not installed.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(
    os.pathsep
)

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server: the one that TEST_S3_SERVER names, with the environment's keys, or one that lives in
    this process.
    """
    if address := os.environ.get("TEST_S3_SERVER"):
        yield address
        return
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of an empty bucket, for the time of a test; the environment points to its server."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    bucket = boto3.resource("s3").create_bucket(Bucket=f"bucket-{uuid.uuid4().hex}")
    yield f"s3://{bucket.name}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    bucket.objects.delete()
    bucket.delete()


class FaultyProxy(ThreadingHTTPServer):
    """Passes requests on, except where a fault is due.

    Faults: `503`, `429`, `refused` (cut before the request is passed on), `lost` (passed on, the answer never comes),
    and for answers with a body `reset` and `truncated` (cut in its middle, hard or politely), `stalled` (silent in its
    middle), `slow` (in small pieces),
    `stale` (the previous answer to the same method).
    """

    daemon_threads = True

    def __init__(self, upstream: str):
        super().__init__(("127.0.0.1", 0), FaultyHandler)
        self.upstream = upstream.removeprefix("http://")
        self.faults: deque[tuple[str, str]] = deque()
        self.last: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fail(self, method: str, *faults: str) -> None:
        self.faults.extend((method, fault) for fault in faults)

    def handle_error(self, request, client_address) -> None:
        """Does not report connections that a fault cut."""


class FaultyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def log_message(self, format: str, *args) -> None:
        pass

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(self.command)
        fault = (
            self.server.faults.popleft()[1] if self.server.faults and self.server.faults[0][0] == self.command else ""
        )
        if fault == "refused":
            return self.cut()
        if fault in ("503", "429"):
            return self.answer(int(fault), [], SLOW_DOWN if fault == "503" else b"")
        upstream = HTTPConnection(self.server.upstream)
        upstream.request(self.command, self.path, body, dict(self.headers.items()))
        response = upstream.getresponse()
        data = response.read()
        if fault == "lost":
            return self.cut()
        if fault == "stale":
            data = self.server.last[self.command]
        self.server.last[self.command] = data
        headers = [
            (k, v)
            for k, v in response.getheaders()
            if k.lower() not in ("content-length", "connection", "transfer-encoding")
        ]
        length = response.getheader("Content-Length") if self.command == "HEAD" else None
        self.answer(response.status, headers, data, fault, length)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = pass_on  # noqa: N815

    def answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, fault: str = "", length: str | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if fault == "slow":
            for i in range(0, len(data), -(-len(data) // 5)):
                self.wfile.write(data[i : i + -(-len(data) // 5)])
                time.sleep(0.05)
            return
        self.wfile.write(data[: len(data) // 2] if fault in ("reset", "truncated", "stalled") else data)
        if fault == "stalled":
            time.sleep(2)
        if fault in ("reset", "truncated", "stalled"):
            self.cut(hard=fault == "reset")

    def cut(self, hard: bool = True) -> None:
        if hard:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.wfile.flush()
        self.connection.close() if hard else self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A failing proxy to the bucket of `s3`; the environment points to it."""
    assert s3, "the bucket is made before the way to it fails"
    server = FaultyProxy(s3_server)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.uri)
    yield server
    server.shutdown()
    server.server_close()
