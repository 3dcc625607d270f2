"""What is particular to S3: prefixes, refusals and connections that break."""

from __future__ import annotations

from itertools import count
from typing import Any

import boto3
import pytest

from infra.objects.open import open_store
from infra.objects.s3 import MAX_REOPENS, S3Store
from infra.objects.store import ObjectChanged, ObjectInfo, ObjectStoreError
from infra.settings.serving import Storage
from tests.contracts.servers import S3Server, free_port

_buckets = count()


@pytest.fixture
def client(s3_server: S3Server) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=s3_server.endpoint_url,
        aws_access_key_id="x",
        aws_secret_access_key="x",
        region_name=s3_server.region,
    )


@pytest.fixture
def bucket(client: Any) -> str:
    name = f"particular-{next(_buckets)}"
    client.create_bucket(Bucket=name)
    return name


def test_nothing_outside_the_prefix_is_seen_or_touched(client: Any, bucket: str) -> None:
    inside, beside = S3Store(client, bucket, "a"), S3Store(client, bucket, "ab")
    inside.put("k", b"1")
    beside.put("k", b"2")
    client.put_object(Bucket=bucket, Key="a/folder/", Body=b"")
    assert [info.key for info in inside.list()] == ["k"]
    inside.delete("k")
    assert beside.get("k") == b"2"


def test_encryption_at_rest_is_asked_for(client: Any, bucket: str) -> None:
    S3Store(client, bucket, server_side_encryption="AES256").put("k", b"1")
    assert client.head_object(Bucket=bucket, Key="k")["ServerSideEncryption"] == "AES256"


def test_a_missing_bucket_is_named(client: Any) -> None:
    store = S3Store(client, "no-such-bucket-here")
    for attempt in (lambda: store.put("k", b""), lambda: store.get("k"), lambda: [*store.list()]):
        with pytest.raises(ObjectStoreError, match="no-such-bucket-here"):
            attempt()


def test_nobody_there_is_said_without_credentials() -> None:
    store = open_store(
        Storage.model_validate(
            {
                "url": "s3://bucket",
                "endpoint_url": f"http://127.0.0.1:{free_port()}",
                "region": "us-east-1",
                "access_key_id": "verysecret",
                "secret_access_key": "verysecret",
            }
        )
    )
    with pytest.raises(ObjectStoreError, match="endpoint_url") as caught:
        store.get("k")
    assert "verysecret" not in str(caught.value)


class Breaking:
    """A client whose bodies end or break after some bytes."""

    def __init__(self, client: Any, *, after: int, times: int, silently: bool) -> None:
        self._client = client
        self._after = after
        self._times = times
        self._silently = silently
        self.requests: list[str | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_object(self, **arguments: Any) -> Any:
        self.requests.append(arguments.get("Range"))
        found = self._client.get_object(**arguments)
        if self._times:
            self._times -= 1
            found["Body"] = _BrokenBody(found["Body"], self._after, self._silently)
        return found


class _BrokenBody:
    def __init__(self, body: Any, left: int, silently: bool) -> None:
        self._body = body
        self._left = left
        self._silently = silently

    def read(self, size: int) -> bytes:
        data: bytes = self._body.read(min(size, self._left))
        self._left -= len(data)
        if not data and not self._silently:
            raise ConnectionResetError
        return data

    def close(self) -> None:
        self._body.close()


@pytest.mark.parametrize("silently", [False, True])
def test_a_broken_connection_goes_on_where_it_broke(
    client: Any, bucket: str, silently: bool
) -> None:
    data = bytes(range(256)) * 4000
    S3Store(client, bucket).put("k", data)
    breaking = Breaking(client, after=300_000, times=3, silently=silently)
    assert S3Store(breaking, bucket).get("k") == data
    assert breaking.requests == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_one_that_always_breaks_is_given_up(client: Any, bucket: str) -> None:
    S3Store(client, bucket).put("k", b"data" * 1000)
    breaking = Breaking(client, after=0, times=1000, silently=False)
    with pytest.raises(ObjectStoreError, match="broke off"):
        S3Store(breaking, bucket).get("k")
    assert len(breaking.requests) == MAX_REOPENS + 1


def test_an_object_that_changes_under_a_broken_read_is_not_mixed(client: Any, bucket: str) -> None:
    store = S3Store(client, bucket)
    store.put("k", b"1" * 500_000)
    breaking = Breaking(client, after=300_000, times=1, silently=False)
    stream = S3Store(breaking, bucket).open("k")
    assert stream.read(300_000) == b"1" * 300_000
    changed: ObjectInfo = store.put("k", b"2" * 500_000)
    assert changed.size == 500_000
    with pytest.raises(ObjectChanged):
        stream.read(300_000)
