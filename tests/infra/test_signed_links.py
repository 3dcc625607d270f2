"""A link opens what it was made for, until its time is over, and nothing else."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from infra.settings.operating import Hooks
from infra.signed_links import LinkExpired, LinkInvalid, LinkSigner
from infra.signing_keys import SigningKeyError, signing_keys

KEY, OLD_KEY = "k" * 40, "o" * 40
NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)


class Clock:
    now = NOON

    def __call__(self) -> datetime:
        return self.now


def test_a_link_says_what_it_permits_until_it_is_over() -> None:
    clock = Clock()
    signer = LinkSigner([KEY], clock)
    token = signer.make("pause", "rollout-7", 60)
    link = signer.check("pause", token)
    assert (link.subject, link.expires) == ("rollout-7", NOON + timedelta(seconds=60))
    clock.now = NOON + timedelta(seconds=59)
    assert signer.check("pause", token) == link
    clock.now = NOON + timedelta(seconds=60)
    with pytest.raises(LinkExpired, match="2030-05-01 12:01"):
        signer.check("pause", token)


def test_a_link_of_another_purpose_key_or_form_is_none() -> None:
    signer = LinkSigner([KEY])
    token = signer.make("pause", "rollout-7", 60)
    with pytest.raises(LinkInvalid):
        signer.check("approve", token)
    with pytest.raises(LinkInvalid):
        LinkSigner([OLD_KEY]).check("pause", token)
    body, _, signature = token.rpartition(".")
    forged = LinkSigner([OLD_KEY]).make("pause", "rollout-8", 60).rpartition(".")[0]
    for wrong in ("", ".", token[:-1], f"{forged}.{signature}", f"{body}.", "a" * 10_000, "ü.ü"):
        with pytest.raises(LinkInvalid):
            signer.check("pause", wrong)


def test_a_link_of_the_key_before_is_still_believed() -> None:
    token = LinkSigner([OLD_KEY]).make("report", "reports/a.html", 60)
    signer = LinkSigner([KEY, OLD_KEY])
    assert signer.check("report", token).subject == "reports/a.html"
    assert LinkSigner([KEY]).check("report", signer.make("report", "reports/b.html", 60))


@pytest.mark.parametrize(
    ("purpose", "subject", "seconds"),
    [("", "a", 1), ("a", "", 1), ("a", "b", 0), ("a", "b", float("nan")), ("a", "b", 1e9)],
)
def test_a_link_that_would_permit_nothing_or_for_ever_is_not_made(purpose, subject, seconds):
    with pytest.raises(ValueError, match="a link has"):
        LinkSigner([KEY]).make(purpose, subject, seconds)
    with pytest.raises(ValueError, match="too long"):
        LinkSigner([KEY]).make("a", "".join(map(chr, range(33, 6000))), 1)


def test_processes_that_start_at_once_share_the_one_key_that_only_the_owner_reads(tmp_path: Path):
    settings = Hooks(key_file=tmp_path / "deep" / "hooks.key")
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: signing_keys(settings), range(32)))
    assert len(found) == 1 and signing_keys(settings) in found
    assert stat.S_IMODE(settings.key_file.stat().st_mode) == 0o600
    assert list(settings.key_file.parent.iterdir()) == [settings.key_file]


def test_settings_come_before_the_file_and_a_spoilt_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "hooks.key"
    given = Hooks(keys=(SecretStr(KEY), SecretStr(OLD_KEY)), key_file=path)
    assert signing_keys(given) == (KEY, OLD_KEY) and not path.exists()
    with pytest.raises(ValidationError, match="at least 32"):
        Hooks(keys=(SecretStr("short"),))
    for content in (b"", b"short\n", b"\xff" * 40):
        path.write_bytes(content)
        with pytest.raises(SigningKeyError, match=r"hooks\.key"):
            signing_keys(Hooks(key_file=path))
