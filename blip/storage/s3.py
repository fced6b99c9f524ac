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

from blip.storage.store import OLD_SECONDS, MissingKeyError, Store, StoreError, check, hidden

log = logging.getLogger(__name__)

T = TypeVar("T")

MISSING = {"NoSuchKey", "404", "NotFound"}
TRANSIENT = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests", "ConditionalRequestConflict"}
PARTS = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=64 << 20)
LONGEST_DELAY = 20.0
# S3DownloadFailedError: the object was replaced between two ranges. urllib3's own: botocore lets them through from bodies it reads itself.
CUT_SHORT = RetriesExceededError, S3DownloadFailedError, urllib3.exceptions.HTTPError


class S3Store(Store):
    """Objects of a bucket under a prefix. What may pass (throttling, 5xx, resets, bodies cut short, silence) is tried again.

    Conditional writes are the store's own (`If-None-Match`, `If-Match`); `probe` tells whether a server has them.
    """

    def __init__(self, uri: str, attempts: int = 8, timeout: float = 60.0):
        """`attempts` for each call, on top of the client's own quick ones; `timeout` in seconds without a byte."""
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise StoreError(f"store {uri!r} names no bucket; write s3://bucket/prefix")
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.uri = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self.attempts, self.timeout = attempts, timeout

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

    def put_file(self, key: str, path: str | Path) -> None:
        def upload(s3) -> None:
            with Path(path).open("rb") as f:
                s3.upload_fileobj(f, self.bucket, self.prefix + check(key), Config=PARTS)

        self.call(key, upload)

    def fetch(self, key: str, path: str | Path) -> None:
        temporary = Path(path).with_name(f".{uuid.uuid4().hex}.tmp")

        def download(s3) -> None:
            with temporary.open("wb") as f:
                s3.download_fileobj(self.bucket, self.prefix + check(key), f, Config=PARTS)

        try:
            self.call(key, download)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        return self.head(key) is not None

    def list(self, prefix: str = "") -> list[str]:
        return [*self.stamps(prefix)]

    def stamps(self, prefix: str = "") -> dict[str, str]:
        def pages(s3) -> dict[str, str]:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            entries = (entry for page in pages for entry in page.get("Contents", []))
            return {entry["Key"].removeprefix(self.prefix): unquoted(entry["ETag"]) for entry in entries}

        return {key: stamp for key, stamp in sorted(self.call(prefix, pages).items()) if not hidden(key)}

    def ages(self, prefix: str = "") -> dict[str, float]:
        def pages(s3) -> dict[str, float]:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            entries = (entry for page in pages for entry in page.get("Contents", []))
            return {entry["Key"].removeprefix(self.prefix): time.time() - entry["LastModified"].timestamp() for entry in entries}

        return {key: age for key, age in sorted(self.call(prefix, pages).items()) if not hidden(key)}

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
        except MissingKeyError:  # another process was faster
            return 0
        except StoreError as e:
            log.warning("uploads that killed writers left are not looked for: %s", e)  # who may write may not list them everywhere
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
        # A write whose answer was lost is repeated and then refused because of itself: the object says who wrote it.
        writer = uuid.uuid4().hex
        try:
            self.call(key, lambda s3: s3.put_object(**self.at(key), Body=data, Metadata={"writer": writer}, **condition))
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
        return type(self)("/".join([self.uri, *map(check, parts)]), self.attempts, self.timeout)

    def at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + check(key)}

    def call(self, key: str, request: Callable[[Any], T]) -> T:
        """Runs a request, reading of the body included, and repeats it while the failure may pass, after growing random delays."""
        for attempt in range(self.attempts):
            try:
                return request(client(self.timeout, self.bucket))
            except (BotoCoreError, ClientError, *CUT_SHORT) as e:
                if not passing(e) or attempt == self.attempts - 1:
                    raise self.error(key, e) from None  # the message says it all, and without secrets
            time.sleep(random.random() * min(0.25 * 2**attempt, LONGEST_DELAY))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def error(self, key: str, e: Exception) -> StoreError:
        uri = f"{self.uri}/{key}"
        if isinstance(e, NoCredentialsError):
            return StoreError(f"{uri}: {e}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or {UNSIGNED_BUCKETS}=1 for a public bucket")
        if not isinstance(e, ClientError):
            return StoreError(f"{uri}: {e}")
        code = e.response.get("Error", {}).get("Code", "")
        if code in MISSING:
            return MissingKeyError(f"{uri} does not exist")
        if code in ("PreconditionFailed", "412"):
            return RefusedError(f"{uri} is not as the condition wants it")
        if code == "NoSuchBucket":
            return StoreError(f"{uri}: there is no bucket {self.bucket!r}; create it first")
        if code in ("InvalidRange", "416"):
            return StoreError(f"{uri} ends before the bytes asked for")
        return StoreError(f"{uri}: {e}")


class RefusedError(StoreError):
    """A conditional write that the store refused."""


UNSIGNED_BUCKETS = "AWS_NO_SIGN_REQUEST"
"""The variable that names the buckets, joined by commas, to which requests go without a signature; 1, true or yes means all of them."""
SETTINGS = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ACCESS_KEY_ID",
)
"""Variables that decide about a client; one that was made under others is not used."""

local = threading.local()
sessions: dict[tuple[Any, ...], tuple[boto3.session.Session, threading.Lock]] = {}
"""By process and settings: a session takes long to make and is not to be shared by threads while it makes a client."""


def client(timeout: float, bucket: str) -> Any:
    """Returns this thread's client in this process: neither a fork nor another thread shares its connections.

    Raises StoreError where the settings of S3 make no sense.
    """
    settings = os.getpid(), *map(os.environ.get, SETTINGS)
    key = timeout, is_unsigned(bucket), *settings
    clients = vars(local).setdefault("clients", {})
    if key not in clients:
        session, making = sessions.get(settings) or sessions.setdefault(settings, (boto3.session.Session(), threading.Lock()))
        config = Config(
            connect_timeout=timeout,
            read_timeout=timeout,
            retries={"mode": "standard", "total_max_attempts": 4},
            # Manifests carry digests; servers other than AWS's do not all know the newer checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": addressing_style(session)},
            signature_version=UNSIGNED if is_unsigned(bucket) else None,
        )
        try:
            with making:
                clients[key] = session.client("s3", config=config)
        except ValueError as e:
            raise StoreError(f"s3://{bucket}: {e}: correct AWS_ENDPOINT_URL") from None
    return clients[key]


def addressing_style(session: boto3.session.Session) -> str:
    """Returns how a bucket is named in a URL: as the profile says; else in the path where a server of one's own is set.

    A server inside a cluster has one name, without a subdomain for every bucket.
    """
    profile = session._session.get_scoped_config()  # pyright: ignore[reportAttributeAccessIssue]
    chosen = profile.get("s3") or {}
    own_server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return chosen.get("addressing_style") or ("path" if own_server else "auto")


def is_unsigned(bucket: str) -> bool:
    """Whether the environment asks for requests to this bucket without a signature, as public buckets take them from anybody."""
    asked = os.environ.get(UNSIGNED_BUCKETS, "")
    return asked.lower() in ("1", "true", "yes") or bucket in asked.split(",")


def passing(e: Exception) -> bool:
    """Whether a failure may be gone the next time."""
    if not isinstance(e, ClientError):
        return isinstance(e, (HTTPClientError, IncompleteReadError, *CUT_SHORT))
    status = e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = e.response.get("Error", {}).get("Code")
    return code in TRANSIENT or status in (409, 429) or (status >= 500 and status != 501)


def unquoted(tag: str) -> str:
    return tag.strip('"')
