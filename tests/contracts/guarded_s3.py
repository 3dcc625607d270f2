"""An S3 server that checks keys, and keys that it can be told to revoke while they are in use."""

from __future__ import annotations

import json
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3

from infra.objects.open import open_store
from infra.objects.store import ObjectStore
from infra.settings.serving import Storage
from tests.contracts.servers import S3Server, start_s3

EVERYTHING = ("*",)
READING = ("s3:GetObject", "s3:ListBucket")


@dataclass(frozen=True)
class StorageKey:
    """A key of a user of its own, and the bucket that it opens."""

    values: dict[str, str]
    """``[storage]`` with this key."""
    users: Any
    """The administrator's client of the server's user accounts."""
    user: str
    administrator: dict[str, str]
    """``[storage]`` of one who still sees the bucket when this key is gone."""

    def revoke(self) -> None:
        self.users.delete_access_key(UserName=self.user, AccessKeyId=self.values["access_key_id"])

    def allow(self, *actions: str) -> None:
        _allow(self.users, self.user, actions)

    def store(self) -> ObjectStore:
        return open_store(Storage.model_validate(self.values))

    def seen_by_others(self) -> ObjectStore:
        return open_store(Storage.model_validate(self.administrator))

    @property
    def environment(self) -> dict[str, str]:
        """For a process whose settings have this key."""
        return {
            f"NIGHTSCHOOL_STORAGE__{name.upper()}": value for name, value in self.values.items()
        }

    @property
    def place(self) -> dict[str, str]:
        """Where the bucket is, without the key."""
        return {name: self.values[name] for name in ("url", "endpoint_url", "region")}


@dataclass(frozen=True)
class GuardedS3:
    server: S3Server
    administrator: dict[str, str]

    def new_key(self) -> StorageKey:
        """A new bucket and a user who may do everything in it."""
        user = f"night-{uuid.uuid4().hex[:12]}"
        place = {
            "url": f"s3://{user}/school",
            "endpoint_url": self.server.endpoint_url,
            "region": self.server.region,
        }
        _client("s3", self.server, self.administrator).create_bucket(Bucket=user)
        users = _client("iam", self.server, self.administrator)
        return StorageKey(
            {**place, **_new_user(users, user)}, users, user, {**place, **self.administrator}
        )


@contextmanager
def start_guarded_s3() -> Iterator[GuardedS3]:
    with start_s3() as server:
        first = {"access_key_id": "test", "secret_access_key": "test"}
        administrator = _new_user(_client("iam", server, first), "administrator")
        # From here on every request is checked, as S3 itself does.
        address = f"{server.endpoint_url}/moto-api/reset-auth"
        plain = {"Content-Type": "text/plain"}
        with urllib.request.urlopen(urllib.request.Request(address, b"0", plain)):
            pass
        yield GuardedS3(server, administrator)


def _new_user(users: Any, name: str) -> dict[str, str]:
    users.create_user(UserName=name)
    _allow(users, name, EVERYTHING)
    key = users.create_access_key(UserName=name)["AccessKey"]
    return {"access_key_id": key["AccessKeyId"], "secret_access_key": key["SecretAccessKey"]}


def _allow(users: Any, name: str, actions: tuple[str, ...]) -> None:
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    users.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=policy)


def _client(kind: str, server: S3Server, key: dict[str, str]) -> Any:
    return boto3.client(
        kind,
        endpoint_url=server.endpoint_url,
        region_name=server.region,
        aws_access_key_id=key["access_key_id"],
        aws_secret_access_key=key["secret_access_key"],
    )
