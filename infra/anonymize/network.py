"""Addresses of machines: IPv4, IPv6 and MAC."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from infra.anonymize.finding import Finding

_IPV4 = re.compile(r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w])(?!\.[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:]{2,39}+(?![\w:])")
_MAC = re.compile(r"(?<![\w:-])[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}(?![\w:-])")


def find_addresses(text: str) -> Iterator[Finding]:
    """IP addresses, except those that say nothing: loopback and unspecified."""
    for match in _IPV4.finditer(text):
        if _tells(match.group()):
            yield Finding("IP_ADDRESS", *match.span())
    if text.count(":") < 2:
        return
    for match in _IPV6.finditer(text):
        found = match.group()
        # A scope operator between two words ("a::b") is no address.
        if found.count(":") >= 2 and any(map(str.isdigit, found)) and _tells(found):
            yield Finding("IP_ADDRESS", *match.span())


def find_hardware_addresses(text: str) -> Iterator[Finding]:
    for match in _MAC.finditer(text):
        yield Finding("MAC_ADDRESS", *match.span())


def _tells(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)
