"""Each recognizer on what it must find, on what it must leave alone, and on hostile input."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.anonymize.finding import Finding, settle
from infra.anonymize.kinds import KINDS
from infra.anonymize.recognizers import find, structured

US, GB, DE = structured("US"), structured("GB"), structured("DE")


def found(text: str, recognizers: tuple = US) -> list[tuple[str, str]]:  # type: ignore[type-arg]
    return [(f.kind, text[f.start : f.end]) for f in find(text, recognizers)]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("EMAIL", "ann@example.com"),
        ("EMAIL", "ann.o'neil+tag@mail.example.co.uk"),
        ("EMAIL", "jürgen@größe.example"),
        ("EMAIL", "ann%40example.com"),
        ("EMAIL", "a@xn--bcher-kva.xn--p1ai"),
        ("PHONE", "(415) 555-2671"),
        ("PHONE", "415-555-2671"),
        ("PHONE", "415.555.2671"),
        ("PHONE", "1-415-555-2671"),
        ("PHONE", "4155552671"),
        ("PHONE", "+1 415 555 2671"),
        ("PHONE", "+44 20 7946 0958"),
        ("PHONE", "+49 (0)89 123456"),
        ("PHONE", "+33 6 12 34 56 78"),
        ("CARD", "4111111111111111"),
        ("CARD", "4111 1111 1111 1111"),
        ("CARD", "5500-0000-0000-0004"),
        ("CARD", "3782 822463 10005"),
        ("CARD", "6011000990139424"),
        ("IBAN", "DE89370400440532013000"),
        ("IBAN", "DE89 3704 0044 0532 0130 00"),
        ("IBAN", "GB29 NWBK 6016 1331 9268 19"),
        ("IBAN", "gb29nwbk60161331926819"),
        ("IBAN", "NO93 8601 1117 947"),
        ("IP_ADDRESS", "203.0.113.7"),
        ("IP_ADDRESS", "2001:db8::8a2e:370:7334"),
        ("IP_ADDRESS", "fe80::1"),
        ("IP_ADDRESS", "2001:0db8:85a3:0000:0000:8a2e:0370:7334"),
        ("MAC_ADDRESS", "00:1A:2b:3c:4D:5e"),
        ("MAC_ADDRESS", "00-1a-2b-3c-4d-5e"),
        ("US_SSN", "536-90-4399"),
        ("JWT", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3"),
        ("API_KEY", "sk-abcdefghijklmnopqrstuvwx12"),
        ("API_KEY", "AKIAIOSFODNN7EXAMPLE"),
        ("API_KEY", "ghp_" + "a1B2" * 9),
        ("API_KEY", "xoxb-1234567890-abcdefghij"),
        ("API_KEY", "AIza" + "x" * 35),
        ("API_KEY", "whsec_" + "MDEyMzQ1Njc4OWFiY2RlZg=="),
        ("API_KEY", "gsk_" + "a1B2" * 10),
        ("API_KEY", "dapi" + "0123456789abcdef" * 2),
        ("API_KEY", "shpat_" + "0123456789abcdef" * 2),
        ("API_KEY", "123456789:AA" + "x1Y2z" * 6 + "abc"),
        ("CARD", "213115275892908"),
        ("CARD", "676272529097"),
        ("PHONE", "868-917-1218"),
        ("NATIONAL_ID", "RSSMRA85T10A562S"),
        ("NATIONAL_ID", "756.9217.0769.85"),
        ("NATIONAL_ID", "131052-308T"),
        ("NATIONAL_ID", "BOXW310820HNERXN09"),
        ("NATIONAL_ID", "AB 12 34 56 C"),
        ("PRIVATE_KEY", "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----"),
    ],
)
@pytest.mark.parametrize("around", ["{}", "see {}, thanks", '"{}"', "({})", "a\n{}\nb", "x={};"])
def test_finds(kind: str, value: str, around: str) -> None:
    assert (kind, value) in found(around.format(value)), "not found, or not whole"


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("https://bob:hunter2@host.example/x", "CREDENTIALS", "bob:hunter2"),
        ("postgresql://u:p4ss@db:5432/x", "CREDENTIALS", "u:p4ss"),
        ("my password is hunter2!", "PASSWORD", "hunter2"),
        ("password: s3cr3t!pw", "PASSWORD", "s3cr3t!pw"),
        ("API_KEY=abc123def", "PASSWORD", "abc123def"),
        ("Authorization: Bearer abcdefghijklmnopqrst", "API_KEY", "abcdefghijklmnopqrst"),
        ("2024 4111 1111 1111 1111", "CARD", "4111 1111 1111 1111"),
        ("DE89 3704 0044 0532 0130 00 is my account", "IBAN", "DE89 3704 0044 0532 0130 00"),
        ("call 415-555-2671 12 times", "PHONE", "415-555-2671"),
        (
            "see -----BEGIN PRIVATE KEY-----\nMIIEowIBAAKCAQEA",
            "PRIVATE_KEY",
            "-----BEGIN PRIVATE KEY-----\nMIIEowIBAAKCAQEA",
        ),
        ("mail ann@example.com.", "EMAIL", "ann@example.com"),
        ("<ann@example.com>", "EMAIL", "ann@example.com"),
        ("mailto:ann@example.com?x=1", "EMAIL", "ann@example.com"),
        ("x" * 200 + "@example.com", "EMAIL", "x" * 64 + "@example.com"),
        ('say "a\\nann@example.com"', "EMAIL", "ann@example.com"),
        ("call me on +41 (0)43 363 95 32", "PHONE", "+41 (0)43 363 95 32"),
        ("Phone: 9175 3554", "PHONE", "9175 3554"),
        ("Phone:\\n032 702 26 96\\n", "PHONE", "032 702 26 96"),
        ("546.257.6123x413-Fax", "PHONE", "546.257.6123x413"),
        ("Server=db;Database=x;Uid=sa;Pwd=letmein;", "PASSWORD", "letmein"),
        ("AccountName=a;AccountKey=abcDEF/+123==;", "PASSWORD", "abcDEF/+123=="),
        ("my personal number: 850709-9805 ok", "NATIONAL_ID", "850709-9805"),
        ("BSN 111222333", "NATIONAL_ID", "111222333"),
        ("it is 54362315K.", "NATIONAL_ID", "54362315K"),
        ("CPF 390.533.447-05 please", "NATIONAL_ID", "390.533.447-05"),
    ],
)
def test_finds_the_part_that_is_personal(text: str, kind: str, value: str) -> None:
    assert found(text) == [(kind, value)]


@pytest.mark.parametrize(
    ("text", "recognizers", "value"),
    [
        ("ring 020 7946 0958 now", GB, "020 7946 0958"),
        ("ring 02079460958 now", GB, "02079460958"),
        ("Tel. 089/123456", DE, "089/123456"),
        ("Tel. 030 / 23125000", DE, None),
    ],
)
def test_phones_as_the_region_writes_them(text: str, recognizers: tuple, value: str | None) -> None:  # type: ignore[type-arg]
    if value is not None:
        assert found(text, recognizers) == [("PHONE", value)]


@pytest.mark.parametrize(
    "text",
    [
        "set the lights to 50 percent at 7:30 pm",
        "2026-03-01 12:30:00 and 01/02/2024 and 2026-03-01T12:30:45.123456Z",
        "order 1700000000, ms 1700000000000, id 123456789012",
        "3.14159265358979 and 0.4111111111111111 and -12.5e10",
        "uuid 123e4567-e89b-12d3-a456-426614174000",
        "sha 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "4111 1111 1111 1112 has a wrong checksum",
        "DE89 3704 0044 0532 0130 01 too",
        "user@localhost, @mention, a @ b, 5@3",
        "std::vector<int> a::b 12:30:45 ::",
        "127.0.0.1 and 0.0.0.0 and ::1 and 999.1.1.1",
        "password is required, the secret: nothing",
        "000-12-3456 and 666-12-3456 and 900-12-3456",
        "python 3.11.7, 10.2 GB, $1,234,567.89",
        "GET https://host.example:8080/a/b?c=d",
        "<EMAIL_1> wrote",
        "order 111222333 and 85070998050, lot 54362315A",
        "call a taxi to 72961 454 Kidd Avenue",
    ],
)
def test_leaves_alone(text: str) -> None:
    assert found(text) == []


def test_every_kind_is_declared() -> None:
    text = (
        "a@b.example 415-555-2671 4111111111111111 DE89370400440532013000 203.0.113.7 "
        "00:1A:2b:3c:4D:5e 536-90-4399 756.9217.0769.85 sk-abcdefghijklmnopqrstuvwx12 password=x1y2z3 "
        "http://u:p@h eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0.abc "
        "-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----"
    )
    assert {kind for kind, _ in found(text)} == KINDS


HOSTILE = {
    "letters": "a",
    "digits": "1",
    "spaced digits": "1 ",
    "groups of four": "4111 ",
    "at signs": "@",
    "short mails": "a@",
    "mail-like": "a.b@c.d ",
    "colons": "1:",
    "hex": "ab:",
    "token starts": "eyJ",
    "dashes": "12-34-",
    "phones": "415-555-2671 ",
    "other phones": "+49 89 123456 ",
    "accounts": "DE89 ",
    "addresses": "1.2.3.4 ",
    "key starts": "-----BEGIN PRIVATE KEY-----",
    "credentials": "://a:",
    "password": "password is ",
    "pluses": "+1 ",
    "brackets": "(",
    "data url": "data:image/png;base64,",
    "secret words": "secret_",
    "dots": ".",
    "percent": "%40",
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_text_takes_more_than_linear_time(unit: str) -> None:
    """Anything quadratic takes hours on this size, not minutes."""
    text = unit * (400_000 // len(unit))
    for finding in find(text, US):
        assert 0 <= finding.start < finding.end <= len(text)


@given(st.text(max_size=300), st.sampled_from(["a@b.example", "4111111111111111", "203.0.113.7"]))
def test_findings_are_in_order_and_apart(text: str, value: str) -> None:
    whole = f"{text} {value} {text}"
    findings = find(whole, US)
    assert (value in [whole[f.start : f.end] for f in findings]) or value in text
    for before, after in pairwise(findings):
        assert before.end <= after.start
    assert all(0 <= f.start < f.end <= len(whole) and f.kind in KINDS for f in findings)


def test_the_more_trusted_wins_an_overlap() -> None:
    trusted = [Finding("A", 5, 10)]
    other = [Finding("B", 0, 5), Finding("B", 4, 6), Finding("B", 9, 12), Finding("B", 10, 11)]
    assert settle([trusted, other]) == (
        [Finding("B", 0, 5), Finding("A", 5, 10), Finding("B", 10, 11)],
        [Finding("B", 4, 6), Finding("B", 9, 12)],
    )
    assert settle([[Finding("A", 5, 6)], [Finding("B", 0, 20)]])[0] == [Finding("A", 5, 6)]


CARD, OTHER = "4111111111111111", "4242424242424242"


@pytest.mark.parametrize("between", ["", " ", "-"])
@pytest.mark.parametrize("shape", ["{c}{b}{m}", "{m}{b}{o}", "{c}{b}{m}{b}{o}", "{c}{b}{o}{b}{m}"])
def test_a_mail_address_glued_to_card_numbers(shape: str, between: str) -> None:
    """Nothing of either is left, whichever a recognizer sees first."""
    if not between and shape == "{c}{b}{o}{b}{m}":
        pytest.skip("one number of 20 digits and more: nobody can tell where a card ends")
    text = shape.format(c="4111 1111 1111 1111", o=OTHER, m="ann@example.com", b=between)
    left = text
    for _, value in found(text):
        left = left.replace(value, "")
    assert not any(part in left for part in ("1111", "4242", "ann", "example"))
    assert {kind for kind, _ in found(text)} <= {"CARD", "EMAIL"}
    assert "EMAIL" in {kind for kind, _ in found(text)}
