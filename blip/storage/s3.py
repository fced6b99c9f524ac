"""A store over an S3 bucket."""

import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import boto3.session
import urllib3.exceptions
from boto3.s3.transfer import TransferConfig
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError, NoCredentialsError
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError

from blip.storage.store import (
    OLD_SECONDS,
    UNSIGNED_BUCKETS,
    MissingKeyError,
    Store,
    StoreError,
    check_key,
    hidden,
    unsigned,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

MISSING_CODES = {"NoSuchKey", "404", "NotFound"}
TRANSIENT_CODES = {
    "ConditionalRequestConflict",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
MULTIPART = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=64 << 20)
MAX_DELAY = 20.0
"""Seconds between two attempts at most."""
# S3DownloadFailedError: the object was replaced between two ranges. botocore does not wrap urllib3's errors on bodies.
INTERRUPTED = RetriesExceededError, S3DownloadFailedError, urllib3.exceptions.HTTPError


class S3Store(Store):
    """Objects of a bucket under a prefix.

    Transient failures (throttling, 5xx, resets, truncated bodies, timeouts) are retried.
    Conditional writes use `If-None-Match` and `If-Match`; `probe` tests whether a server supports them.
    """

    def __init__(self, uri: str, attempts: int = 8, timeout: float = 60.0, anonymous: bool = False):
        """`attempts` of each call, on top of the client's own quick retries; `timeout` in seconds without a byte.

        `anonymous` sends no keys, which public buckets accept; UNSIGNED_BUCKETS does the same for buckets by name.
        """
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise StoreError(f"store {uri!r} names no bucket; write s3://bucket/prefix")
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.uri = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self.attempts, self.timeout, self.anonymous = attempts, timeout, anonymous

    def get(self, key: str) -> bytes:
        return self.call(key, lambda s3: s3.get_object(**self.at(key))["Body"].read())

    def read(self, key: str, offset: int, size: int) -> bytes:
        if not size:
            return b""

        def ranged(s3) -> bytes:
            return s3.get_object(**self.at(key), Range=f"bytes={offset}-{offset + size - 1}")["Body"].read()

        data = self.call(key, ranged)
        if len(data) != size:
            raise StoreError(f"{self.uri}/{key} ends before byte {offset + size}")
        return data

    def put(self, key: str, data: bytes) -> None:
        self.call(key, lambda s3: s3.put_object(**self.at(key), Body=data))

    def put_file(self, key: str, path: str | Path, advance: Callable[[int], object] | None = None) -> None:
        def upload(s3) -> None:
            with Path(path).open("rb") as f:
                s3.upload_fileobj(f, self.bucket, self.prefix + check_key(key), Config=MULTIPART, Callback=advance)

        self.call(key, upload)

    def fetch(self, key: str, path: str | Path) -> None:
        temporary = Path(path).with_name(f".{uuid.uuid4().hex}.tmp")

        def download(s3) -> None:
            with temporary.open("wb") as f:
                s3.download_fileobj(self.bucket, self.prefix + check_key(key), f, Config=MULTIPART)

        try:
            self.call(key, download)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        return self.head(key) is not None

    def size(self, key: str) -> int:
        found = self.head(key)
        if found is None:
            raise MissingKeyError(f"{self.uri}/{key} does not exist")
        return found["ContentLength"]

    def list(self, prefix: str = "") -> list[str]:
        return [*self.stamps(prefix)]

    def stamps(self, prefix: str = "") -> dict[str, str]:
        return {key: unquoted(entry["ETag"]) for key, entry in self.entries(prefix).items()}

    def ages(self, prefix: str = "") -> dict[str, float]:
        now = time.time()
        return {key: now - entry["LastModified"].timestamp() for key, entry in self.entries(prefix).items()}

    def entries(self, prefix: str) -> dict[str, dict[str, Any]]:
        """Returns the entries of the bucket's listing by key, sorted."""

        def listing(s3) -> list[dict[str, Any]]:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            return [entry for page in pages for entry in page.get("Contents", [])]

        found = {entry["Key"].removeprefix(self.prefix): entry for entry in self.call(prefix, listing)}
        return {key: found[key] for key in sorted(found) if not hidden(key)}

    def sweep(self, age: float = OLD_SECONDS) -> int:
        def uploads(s3) -> list[dict[str, str]]:
            pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self.prefix)
            begun = [upload for page in pages for upload in page.get("Uploads", [])]
            old = [upload for upload in begun if time.time() - upload["Initiated"].timestamp() > age]
            return [{"Key": upload["Key"], "UploadId": upload["UploadId"]} for upload in old]

        try:
            left = self.call("", uploads)
            for upload in left:
                self.call("", lambda s3, upload=upload: s3.abort_multipart_upload(Bucket=self.bucket, **upload))
        except MissingKeyError:  # another process has removed it
            return 0
        except StoreError as e:
            # not every writer has the permission to list uploads
            log.warning("unfinished uploads of killed writers are not removed: %s", e)
            return 0
        return len(left)

    def delete(self, key: str) -> None:
        self.call(key, lambda s3: s3.delete_object(**self.at(key)))

    def get_tagged(self, key: str) -> tuple[bytes, str] | None:
        def tagged(s3) -> tuple[bytes, str]:
            answer = s3.get_object(**self.at(key))
            return answer["Body"].read(), unquoted(answer["ETag"])

        try:
            return self.call(key, tagged)
        except MissingKeyError:
            return None

    def put_new(self, key: str, data: bytes) -> bool:
        return self.put_conditionally(key, data, IfNoneMatch="*")

    def put_if(self, key: str, data: bytes, tag: str) -> bool:
        return self.put_conditionally(key, data, IfMatch=unquoted(tag))  # Ceph refuses a quoted one

    def put_conditionally(self, key: str, data: bytes, **condition: str) -> bool:
        # If the response of a write is lost, its retry is refused because of it: the metadata tell whose write it was.
        writer = uuid.uuid4().hex

        def write(s3) -> None:
            s3.put_object(**self.at(key), Body=data, Metadata={"writer": writer}, **condition)

        try:
            self.call(key, write)
        except MissingKeyError:
            return False
        except RefusedError:
            current = self.head(key)
            return current is not None and current.get("Metadata", {}).get("writer") == writer
        return True

    def head(self, key: str) -> dict[str, Any] | None:
        try:
            return self.call(key, lambda s3: s3.head_object(**self.at(key)))
        except MissingKeyError:
            return None

    def join(self, *parts: str) -> Self:
        place = "/".join([self.uri, *map(check_key, parts)])
        return type(self)(place, self.attempts, self.timeout, self.anonymous)

    def at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + check_key(key)}

    def call(self, key: str, request: Callable[[Any], T]) -> T:
        """Returns the result of `request`, which reads the body too; retries transient failures with random backoff."""
        for attempt in range(self.attempts):
            try:
                return request(s3_client(self.timeout, self.bucket, self.anonymous))
            except (BotoCoreError, ClientError, *INTERRUPTED) as e:
                if not is_transient(e) or attempt == self.attempts - 1:
                    raise self.error(key, e) from None  # the cause may contain secrets
            time.sleep(random.random() * min(0.25 * 2**attempt, MAX_DELAY))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def error(self, key: str, e: Exception) -> StoreError:
        uri = f"{self.uri}/{key}"
        if isinstance(e, NoCredentialsError):
            return StoreError(
                f"{uri}: {e}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                f"or {UNSIGNED_BUCKETS}=1 for a public bucket (data.anonymous=true for own data in one)"
            )
        if not isinstance(e, ClientError):
            return StoreError(f"{uri}: {e}")
        code = e.response.get("Error", {}).get("Code", "")
        if code in MISSING_CODES:
            return MissingKeyError(f"{uri} does not exist")
        if code in ("PreconditionFailed", "412"):
            return RefusedError(f"{uri} does not meet the condition of the write")
        if code == "NoSuchBucket":
            return StoreError(f"{uri}: there is no bucket {self.bucket!r}; create it first")
        if code in ("InvalidRange", "416"):
            return StoreError(f"{uri} ends before the bytes asked for")
        return StoreError(f"{uri}: {e}")


class RefusedError(StoreError):
    """A conditional write whose condition was not met."""


CLIENT_VARIABLES = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ACCESS_KEY_ID",
)
"""Environment variables that a client depends on; a change of any leads to a new client."""

local = threading.local()
sessions: dict[tuple[Any, ...], tuple[boto3.session.Session, threading.Lock]] = {}
"""By process and variables. Sessions are slow to make; the lock guards making a client, which is not thread-safe."""


def s3_client(timeout: float, bucket: str, anonymous: bool = False) -> Any:
    """Returns the client of this thread and process; forks and other threads do not share its connections.

    Raises StoreError if the endpoint is not a valid URL.
    """
    settings = os.getpid(), *map(os.environ.get, CLIENT_VARIABLES)
    without_keys = anonymous or is_unsigned(bucket)
    key = timeout, without_keys, *settings
    clients = vars(local).setdefault("clients", {})
    if key not in clients:
        if settings not in sessions:
            sessions.setdefault(settings, (boto3.session.Session(), threading.Lock()))
        session, lock = sessions[settings]
        config = Config(
            connect_timeout=timeout,
            read_timeout=timeout,
            retries={"mode": "standard", "total_max_attempts": 4},
            # Manifests carry digests, and some servers other than AWS's do not support the newer checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": addressing_style(session)},
            signature_version=UNSIGNED if without_keys else None,
        )
        try:
            with lock:
                clients[key] = session.client("s3", config=config)
        except ValueError as e:
            raise StoreError(f"s3://{bucket}: {e}: correct AWS_ENDPOINT_URL") from None
    return clients[key]


def addressing_style(session: boto3.session.Session) -> str:
    """Returns the addressing style of buckets: the profile's, else `path` with a custom endpoint, else `auto`.

    A server inside a cluster has one host name, without a subdomain for every bucket.
    """
    profile = session._session.get_scoped_config()  # pyright: ignore[reportAttributeAccessIssue]
    chosen = profile.get("s3") or {}
    own_server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return chosen.get("addressing_style") or ("path" if own_server else "auto")


def is_unsigned(bucket: str) -> bool:
    """Returns whether the environment asks for unsigned requests to this bucket, which public buckets accept."""
    return os.environ.get(UNSIGNED_BUCKETS, "").lower() in ("1", "true", "yes") or unsigned(bucket)


def is_transient(e: Exception) -> bool:
    """Returns whether a failure may not occur again on a retry."""
    if not isinstance(e, ClientError):
        return isinstance(e, (HTTPClientError, IncompleteReadError, *INTERRUPTED))
    status = e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = e.response.get("Error", {}).get("Code")
    return code in TRANSIENT_CODES or status in (409, 429) or (status >= 500 and status != 501)


def unquoted(tag: str) -> str:
    return tag.strip('"')
