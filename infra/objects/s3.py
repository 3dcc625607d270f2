"""An object store in a bucket: AWS, or any endpoint that speaks S3 with conditional writes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from infra.objects.keys import check_key
from infra.objects.store import (
    ObjectChanged,
    ObjectExists,
    ObjectInfo,
    ObjectMissing,
    ObjectRefused,
    ObjectStoreError,
)
from infra.settings.serving import Storage

CONNECT_SECONDS = 5
READ_SECONDS = 60
MAX_ATTEMPTS = 4
MAX_CONFLICTS = 5
MAX_REOPENS = 3
BUFFER_BYTES = 256 << 10

_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})
_PRECONDITION = frozenset({"PreconditionFailed", "412"})
# Of status 400, unlike every other refusal. To HEAD the status is all that is said.
_EXPIRED = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})
# Two conditional writes at the same time: S3 asks to try again.
_CONFLICT = frozenset({"ConditionalRequestConflict", "409", "OperationAborted"})


def open_s3(settings: Storage, bucket: str, prefix: str) -> S3Store:
    """The store of an ``s3://bucket/prefix`` URL. Connects with the first request."""
    secret = settings.secret_access_key
    key = settings.access_key_id
    client = boto3.client(
        "s3",
        endpoint_url=settings.endpoint_url,
        region_name=settings.region,
        aws_access_key_id=key.get_secret_value() if key else None,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
            # Other vendors' endpoints know neither bucket host names nor the newer checksums.
            s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    return S3Store(
        client,
        bucket,
        prefix,
        server_side_encryption=settings.server_side_encryption,
        max_object_bytes=settings.max_object_bytes,
    )


class S3Store:
    """``ObjectStore`` in a bucket. Thread-safe, as the client is.

    Args:
        client: a boto3 S3 client.
        bucket: must exist.
        prefix: put before every key; nothing outside it is seen.
        server_side_encryption: ``AES256`` or ``aws:kms``, for every write.
        max_object_bytes: a larger object is refused on write and on ``get``.
    """

    def __init__(
        self,
        client: Any,
        bucket: str,
        prefix: str = "",
        *,
        server_side_encryption: str | None = None,
        max_object_bytes: int = 256 << 20,
    ) -> None:
        self.bucket = bucket
        self.max_object_bytes = max_object_bytes
        self._client = client
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._extra = (
            {"ServerSideEncryption": server_side_encryption} if server_side_encryption else {}
        )

    def __repr__(self) -> str:
        return f"S3Store({f's3://{self.bucket}/{self._prefix}'!r})"

    def put(self, key: str, data: bytes) -> ObjectInfo:
        with self._explained(key):
            return self._write(key, data)

    def create(self, key: str, data: bytes) -> ObjectInfo:
        with self._explained(key):
            try:
                return self._write(key, data, IfNoneMatch="*")
            except ClientError as error:
                if _code(error) in _PRECONDITION:
                    raise ObjectExists(
                        f"the object {key} is already there, and is written only once"
                    ) from None
                raise

    def replace(self, key: str, data: bytes, etag: str) -> ObjectInfo:
        with self._explained(key):
            try:
                return self._write(key, data, IfMatch=f'"{etag}"')
            except ClientError as error:
                if _code(error) in _PRECONDITION:
                    self.info(key)  # some servers say "changed" of what is missing
                    raise ObjectChanged(
                        f"the object {key} has changed since it was read: read it again"
                    ) from None
                raise

    def get(self, key: str) -> bytes:
        with self.open(key) as stream:
            data = stream.read(self.max_object_bytes + 1)
        if len(data) > self.max_object_bytes:
            raise ObjectStoreError(
                f"the object {key} is larger than {self.max_object_bytes} bytes "
                "([storage] max_object_bytes): read it by open()"
            )
        return data

    def open(self, key: str) -> BinaryIO:
        with self._explained(key):
            found = self._client.get_object(Bucket=self.bucket, Key=self._full(key))
        info = ObjectInfo(key, found["ContentLength"], _etag(found))
        return cast("BinaryIO", io.BufferedReader(_Body(self, info, found["Body"]), BUFFER_BYTES))

    def info(self, key: str) -> ObjectInfo:
        with self._explained(key):
            found = self._client.head_object(Bucket=self.bucket, Key=self._full(key))
        return ObjectInfo(key, found["ContentLength"], _etag(found))

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        place = {"StartAfter": self._prefix + after} if after else {}
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self._prefix + prefix, **place
        )
        iterator = iter(pages)
        while True:
            with self._explained(prefix):
                page = next(iterator, None)
            if page is None:
                return
            for found in page.get("Contents", []):
                key = found["Key"].removeprefix(self._prefix)
                if key and not key.endswith("/"):  # markers that consoles make for folders
                    yield ObjectInfo(key, found["Size"], _etag(found))

    def delete(self, key: str) -> None:
        with self._explained(key):
            self._client.delete_object(Bucket=self.bucket, Key=self._full(key))

    def read_from(self, key: str, offset: int, etag: str) -> Any:
        """The body from an offset on, of the same object as before. Raises ObjectChanged."""
        with self._explained(key):
            try:
                return self._client.get_object(
                    Bucket=self.bucket,
                    Key=self._full(key),
                    Range=f"bytes={offset}-",
                    IfMatch=f'"{etag}"',
                )["Body"]
            except ClientError as error:
                if _code(error) in _PRECONDITION:
                    raise ObjectChanged(f"the object {key} changed while it was read") from None
                raise

    def _write(self, key: str, data: bytes, **conditions: str) -> ObjectInfo:
        full = self._full(key)
        if len(data) > self.max_object_bytes:
            raise ObjectStoreError(
                f"the object {key} has {len(data)} bytes, above the {self.max_object_bytes} of "
                "[storage] max_object_bytes: write it in parts, or raise the bound"
            )
        for attempt in range(MAX_CONFLICTS):
            try:
                written = self._client.put_object(
                    Bucket=self.bucket, Key=full, Body=data, **conditions, **self._extra
                )
                return ObjectInfo(key, len(data), _etag(written))
            except ClientError as error:
                if _code(error) not in _CONFLICT or attempt + 1 == MAX_CONFLICTS:
                    raise
        raise AssertionError("the loop returns or raises")

    def _full(self, key: str) -> str:
        return self._prefix + check_key(key)

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """boto's errors as ours. Their texts hold no credentials, ours no more than them."""
        try:
            yield
        except ClientError as error:
            code = _code(error)
            if code in _MISSING:
                raise ObjectMissing(f"no object under the key {key}") from None
            if code == "NoSuchBucket":
                raise ObjectStoreError(
                    f"there is no bucket {self.bucket}: create it, or correct [storage] url"
                ) from None
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            kind = ObjectRefused if status in (401, 403) or code in _EXPIRED else ObjectStoreError
            raise kind(
                f"the bucket {self.bucket} refused {error.operation_name} of {key} ({code}): "
                "check [storage] credentials and the bucket's policy"
            ) from error
        except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
            raise ObjectRefused(
                f"no key for the bucket {self.bucket} ({error}): check [storage] credentials"
            ) from error
        except BotoCoreError as error:
            raise ObjectStoreError(
                f"no answer from the bucket {self.bucket} for {key} ({type(error).__name__}): "
                "check [storage] endpoint_url, region and credentials"
            ) from error


class _Body(io.RawIOBase):
    """An object as a seekable stream; a connection that breaks is opened again where it broke."""

    def __init__(self, store: S3Store, info: ObjectInfo, body: Any) -> None:
        self._store = store
        self._key = info.key
        self._info = info
        self._place = 0
        self._body = body

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._info.size}[whence]
        place = max(0, base + offset)
        if place != self._place:
            self._drop()
            self._place = place
        return place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        failures = 0
        while self._place < self._info.size:
            try:
                if self._body is None:
                    self._body = self._store.read_from(self._key, self._place, self._info.etag)
                data = self._body.read(len(buffer))
            except (HTTPClientError, BotoCoreError, OSError) as error:
                self._drop()
                failures += 1
                if failures > MAX_REOPENS:
                    raise ObjectStoreError(
                        f"reading {self._key} broke off {failures} times at byte {self._place}: "
                        "check the network, then run again"
                    ) from error
                continue
            if data:
                buffer[: len(data)] = data
                self._place += len(data)
                return len(data)
            self._drop()
            failures += 1
            if failures > MAX_REOPENS:
                raise ObjectStoreError(f"{self._key} ends at byte {self._place}, before its size")
        return 0

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.close()


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _etag(found: Any) -> str:
    return str(found["ETag"]).strip('"')
