"""Made-up people and specimen numbers: the personal data that the demo's traffic carries.

Names and e-mail addresses come with the packaged databases (all ``example.com``). The rest are the
specimens that standards bodies and card networks publish for this use, so that every recognizer's
checksum accepts them and none of them belongs to anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

from flows.demo.packaged import support_database

CARDS = ("4111 1111 1111 1111", "5555 5555 5555 4444", "4242 4242 4242 4242")
IBANS = ("GB82 WEST 1234 5698 7654 32", "DE89 3704 0044 0532 0130 00", "NL91 ABNA 0417 1643 00")
DOCUMENTATION_NETWORKS = ("192.0.2", "198.51.100", "203.0.113")


@dataclass(frozen=True)
class Person:
    name: str
    email: str
    zip_code: str

    @property
    def first_name(self) -> str:
        return self.name.split()[0]


@cache
def people() -> tuple[Person, ...]:
    """The customers of the packaged shop."""
    users = support_database("retail")["users"].values()
    return tuple(
        Person(
            name=f"{user['name']['first_name']} {user['name']['last_name']}",
            email=user["email"],
            zip_code=user["address"]["zip"],
        )
        for user in users
    )


def phone(random: Random) -> str:
    """A number from the block reserved for fiction."""
    return f"+1 {random.choice((202, 303, 415, 512))}-555-01{random.randrange(100):02d}"


def ip_address(random: Random) -> str:
    """An address from the networks reserved for documentation."""
    return f"{random.choice(DOCUMENTATION_NETWORKS)}.{random.randrange(1, 255)}"
