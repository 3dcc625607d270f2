"""Kustomize as far as our overlays use it: resources, a namespace, patches by name. No binary needed.

A test holds it against the real one where ``kubectl`` is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Object = dict[str, Any]
USED = {"apiVersion", "kind", "namespace", "resources", "patches"}


def render(folder: Path) -> list[Object]:
    """Every object that ``kubectl apply -k folder`` would send."""
    asked = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(asked) <= USED, f"{folder} uses what this renderer does not know"
    objects: list[Object] = []
    for name in asked["resources"]:
        place = (folder / name).resolve()
        if place.is_dir():
            objects += render(place)
        else:
            objects += [one for one in yaml.safe_load_all(place.read_text()) if one]
    for patch in asked.get("patches", []):
        objects = list(_patched(objects, patch, folder))
    for one in objects:
        if one["kind"] != "Namespace":
            one["metadata"]["namespace"] = asked["namespace"]
    keys = [identity(one) for one in objects]
    assert len(keys) == len(set(keys)), "an object is there twice"
    return objects


def identity(one: Object) -> tuple[str, str]:
    return one["kind"], one["metadata"]["name"]


def pod_templates(one: Object) -> Iterator[tuple[str, Object]]:
    """Name and template of every pod that the object makes."""
    kind, name = identity(one)
    if kind in ("Deployment", "StatefulSet", "Job"):
        yield name, one["spec"]["template"]
    elif kind == "RayCluster":
        yield f"{name} head", one["spec"]["headGroupSpec"]["template"]
        for group in one["spec"]["workerGroupSpecs"]:
            yield f"{name} {group['groupName']}", group["template"]


def _patched(objects: list[Object], patch: Object, folder: Path) -> Iterator[Object]:
    body = yaml.safe_load((folder / patch["path"]).read_text())
    target = patch.get("target") or {"kind": body["kind"], "name": body["metadata"]["name"]}
    wanted = target["kind"], target["name"]
    assert wanted in [identity(one) for one in objects], f"{patch['path']} patches nothing"
    for one in objects:
        if identity(one) != wanted:
            yield one
        elif isinstance(body, list):
            yield jsonpatch.apply_patch(one, body)
        else:
            yield _merged(one, body)


def _merged(one: Any, over: Any) -> Any:
    """A strategic merge without lists, which we do not use."""
    if not isinstance(over, dict):
        assert not isinstance(over, list)
        return over
    return {**one, **{key: _merged(one.get(key, {}), value) for key, value in over.items()}}
