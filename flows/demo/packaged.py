"""Finds the data files inside installed packages, without importing those packages.

Importing ``tau2`` or ``home_assistant_intents`` would pull in dependencies the demo does not
install, and only their data files are wanted.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class PackagedDataMissing(RuntimeError):
    """A package whose data the demo plays is not installed."""


@cache
def package_folder(package: str) -> Path:
    """The folder an installed top-level package lives in."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise PackagedDataMissing(
            f"the demo's data package {package!r} is missing: run `make venv`"
        )
    return Path(spec.submodule_search_locations[0])


@cache
def grammar() -> dict[str, Any]:
    """Home Assistant's English sentence grammar: intents, lists, expansion rules, responses."""
    return _json(package_folder("home_assistant_intents") / "data" / "en.json")


@cache
def support_tasks(domain: str) -> list[dict[str, Any]]:
    """The customer-service tasks of one tau2 domain (airline, retail, telecom)."""
    return _json(_domain(domain) / "tasks.json")


@cache
def support_database(domain: str) -> dict[str, Any]:
    """The database of one tau2 domain (airline, retail)."""
    return _json(_domain(domain) / "db.json")


@cache
def support_policy(domain: str) -> str:
    """The handbook that agents of one tau2 domain work by."""
    name = "main_policy.md" if domain == "telecom" else "policy.md"
    return (_domain(domain) / name).read_text(encoding="utf-8")


def _domain(domain: str) -> Path:
    return package_folder("tau2") / "data" / "tau2" / "domains" / domain


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
