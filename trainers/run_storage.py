"""A run in object storage: inputs, last checkpoints, result. What a lost machine takes with it is here.

Keys: ``checkpoints/<run>/`` with ``inputs/``, ``step-<n>/``, ``result/``, ``report.json`` and
``touched.json``. A group of files counts once its ``manifest.json`` is there, which is written last and
names every file's sha256; a worker that finds none of the run on its disk takes it up from here.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from infra.objects.open import open_store
from infra.objects.store import ObjectMissing, ObjectStore
from infra.settings.serving import Storage
from infra.settings.sources import load_settings
from trainers.backends.checkpoints import checkpoint_steps, seal_checkpoint
from trainers.run_folder import RunFolder, RunRequest, StoragePlace, now
from trainers.spec import TrainSpec

PREFIX = "checkpoints"
KEPT_CHECKPOINTS = 2
PART_BYTES = 64 << 20
_STEP = re.compile(r"/step-(\d+)/manifest\.json$")
_INPUTS = ("spec.json", "request.json", "train.jsonl", "validation.jsonl", "old.jsonl")


def place_of(settings: Storage) -> StoragePlace:
    """The store of the settings without its keys, as a worker on any machine finds it."""
    url = settings.url
    if "://" not in url:
        url = str(Path(url).absolute())
    endpoint = str(settings.endpoint_url) if settings.endpoint_url else None
    return StoragePlace(url=url, endpoint_url=endpoint, region=settings.region)


def open_place(place: StoragePlace, own: Storage) -> ObjectStore:
    """The store at ``place`` with this machine's own keys."""
    return open_store(own.model_copy(update=place.model_dump()))


@dataclass(frozen=True)
class RunStorage:
    """One run's objects. Every write may be repeated; readers see whole groups only."""

    store: ObjectStore
    run_id: str

    @classmethod
    def of(cls, store: ObjectStore, spec_digest: str) -> RunStorage:
        return cls(store, spec_digest[:32])

    @property
    def prefix(self) -> str:
        return f"{PREFIX}/{self.run_id}"

    def push_inputs(self, run: RunFolder) -> None:
        """Store spec, request and examples, for workers that do not see this disk."""
        files = [run.path / name for name in _INPUTS if (run.path / name).exists()]
        self._push("inputs", files)

    def spec(self) -> TrainSpec | None:
        """What the run was stored for; None where its inputs are not, or of another release."""
        try:
            return TrainSpec.model_validate_json(
                self.store.get(f"{self.prefix}/inputs/spec.json.0000")
            )
        except (ObjectMissing, ValueError):
            return None

    def request(self) -> RunRequest | None:
        """How it was last asked for; None where that is not stored, or is of another release."""
        try:
            data = self.store.get(f"{self.prefix}/inputs/request.json.0000")
            return RunRequest.model_validate_json(data)
        except (ObjectMissing, ValueError):
            return None

    def pull_inputs(self, run: RunFolder) -> bool:
        """Make the run's folder from storage, or renew it when it was asked for again since.

        False when there is none, here or in storage.
        """
        if run.spec_file.exists():
            asked = self.request()
            if asked is not None and asked.submitted > run.request().submitted:
                run.renew()
                run.ask(asked)
            return True
        run.path.mkdir(parents=True, exist_ok=True)
        run.mark.touch()
        return self._pull("inputs", run.path, last="spec.json")

    def push_checkpoint(self, run: RunFolder, folder: Path, step: int) -> None:
        """Store a whole checkpoint and the best weights so far; older ones than two go."""
        best = sorted(run.best.glob("*")) if run.best.is_dir() else []
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        self._push(f"step-{step:08d}", [*files, run.events_file], {"best": best})
        for old in self.steps()[:-KEPT_CHECKPOINTS]:
            self._remove(f"step-{old:08d}")

    def pull_checkpoint(self, run: RunFolder) -> int | None:
        """Bring the newest stored checkpoint, if it is newer than what this disk has; its step."""
        here = max(checkpoint_steps(run.checkpoints), default=0)
        for step in reversed(self.steps()):
            if step <= here:
                return None
            scratch = run.path / f".pull-{uuid.uuid4().hex}"
            scratch.mkdir(parents=True)
            try:
                if not self._pull(f"step-{step:08d}", scratch):
                    continue
                self._take_over(run, scratch, step)
                return step
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return None

    def push_result(self, run: RunFolder) -> None:
        """Store adapter, record and result of a finished run."""
        record = [path for path in (run.events_file, run.result_file) if path.exists()]
        self._push("result", record, {"adapter": sorted(run.adapter.glob("adapter_*"))})

    def pull_result(self, run: RunFolder) -> bool:
        """Bring a result that another machine made; False when there is none."""
        run.path.mkdir(parents=True, exist_ok=True)
        run.mark.touch()
        return self._pull("result", run.path, last="result.json")

    def push_report(self, report: bytes) -> None:
        """Leave how far the run is, over what was left before."""
        self.store.put(f"{self.prefix}/report.json", report)

    def report(self) -> bytes | None:
        """What was left last; None when nothing was."""
        try:
            return self.store.get(f"{self.prefix}/report.json")
        except ObjectMissing:
            return None

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints in storage, rising."""
        keys = (item.key for item in self.store.list(f"{self.prefix}/step-"))
        return sorted(int(found[1]) for key in keys if (found := _STEP.search(key)))

    def clear(self) -> None:
        """Remove everything of this run: its adapter is kept elsewhere, or nobody wants it."""
        keys = [item.key for item in self.store.list(f"{self.prefix}/")]
        # Manifests first: what is half removed must not look whole.
        for key in sorted(keys, key=lambda key: not key.endswith("manifest.json")):
            self.store.delete(key)

    def _take_over(self, run: RunFolder, scratch: Path, step: int) -> None:
        best = scratch / "best"
        if best.is_dir():
            shutil.rmtree(run.best, ignore_errors=True)
            best.rename(run.best)
        events = scratch / run.events_file.name
        if events.exists() and not run.events_file.exists():
            events.rename(run.events_file)
        events.unlink(missing_ok=True)
        seal_checkpoint(scratch)
        run.checkpoints.mkdir(exist_ok=True)
        target = run.checkpoints / f"checkpoint-{step}"
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)

    def _push(
        self, group: str, files: Iterable[Path], folders: dict[str, list[Path]] | None = None
    ) -> None:
        # First, so that housekeeping finds no run that nobody seems to have touched.
        self._touch()
        named = {path.name: path for path in files if path.exists()}
        for folder, paths in (folders or {}).items():
            named |= {f"{folder}/{path.name}": path for path in paths}
        listing: dict[str, dict[str, object]] = {}
        for name, path in sorted(named.items()):
            digest, parts = hashlib.sha256(), 0
            with path.open("rb") as stream:
                while True:
                    data = stream.read(PART_BYTES)
                    if not data and parts:
                        break
                    digest.update(data)
                    self.store.put(f"{self.prefix}/{group}/{name}.{parts:04d}", data)
                    parts += 1
            listing[name] = {"sha256": digest.hexdigest(), "parts": parts}
        text = json.dumps({"files": listing}, sort_keys=True).encode()
        self.store.put(f"{self.prefix}/{group}/manifest.json", text)
        self._touch()

    def _touch(self) -> None:
        self.store.put(f"{self.prefix}/touched.json", json.dumps({"time": now()}).encode())

    def _pull(self, group: str, folder: Path, last: str | None = None) -> bool:
        """Bring a whole group, ``last`` as its last file; False when it is not there or not whole."""
        try:
            listing = json.loads(self.store.get(f"{self.prefix}/{group}/manifest.json"))["files"]
            for name in sorted(listing, key=lambda name: name == last):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                part, digest = target.with_name(f".{target.name}.part"), hashlib.sha256()
                with part.open("wb") as stream:
                    for number in range(listing[name]["parts"]):
                        data = self.store.get(f"{self.prefix}/{group}/{name}.{number:04d}")
                        digest.update(data)
                        stream.write(data)
                if digest.hexdigest() != listing[name]["sha256"]:
                    # Being overwritten, or damaged: an older checkpoint will do.
                    part.unlink()
                    return False
                part.replace(target)
        except ObjectMissing:
            return False
        return True

    def _remove(self, group: str) -> None:
        self.store.delete(f"{self.prefix}/{group}/manifest.json")
        for item in list(self.store.list(f"{self.prefix}/{group}/")):
            self.store.delete(item.key)


def storage_of(place: StoragePlace | None, run_id: str | None) -> RunStorage | None:
    """A job's run in the store that it names, with this machine's own keys; None where it names none."""
    if place is None or run_id is None:
        return None
    return RunStorage(open_place(place, load_settings().storage), run_id)


def stored_runs(store: ObjectStore) -> dict[str, float]:
    """Run id to when it was last written to, seconds since the epoch; 0 where nobody knows.

    Raises ObjectStoreError: what cannot be read is not what is old.
    """
    found: dict[str, float] = {}
    for item in store.list(f"{PREFIX}/"):
        run_id, _, rest = item.key.removeprefix(f"{PREFIX}/").partition("/")
        found.setdefault(run_id, 0.0)
        if rest == "touched.json":
            try:
                found[run_id] = float(json.loads(store.get(item.key))["time"])
            except (ObjectMissing, ValueError, KeyError, TypeError):
                continue
    return found
