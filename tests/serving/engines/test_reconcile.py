"""Desired against loaded: the plan as a pure function, and its execution on a real engine."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from infra.artifacts.base import read_base_shape
from serving.engines.client import EngineClient
from serving.engines.embedded.base_model import load_base_model
from serving.engines.embedded.server import EmbeddedServer, Limits
from serving.engines.protocol import EngineUnavailable
from serving.engines.reconcile import difference, reconcile

Named = list[tuple[str, Path]]
ours = st.sets(st.sampled_from([f"task-{n}@{n:016x}" for n in range(6)]))
foreign = st.sets(st.sampled_from(["base", "someone-elses", "task@short"]))


@given(desired=ours, loaded=ours, others=foreign, spare=ours)
def test_difference_reaches_the_goal_and_touches_nothing_else(
    desired: set[str], loaded: set[str], others: set[str], spare: set[str]
) -> None:
    plan = difference(desired, loaded | others, spare)
    after = ((loaded | others) - set(plan.unload)) | set(plan.load)
    assert desired <= after
    assert others <= after
    assert after - desired - others <= spare
    assert set(plan.keep) == desired & loaded
    assert not set(plan.load) & loaded
    again = difference(desired, after, spare)
    assert (again.load, again.unload) == ((), ())


@pytest.fixture
async def engine(base: Path) -> AsyncIterator[EngineClient]:
    loaded = load_base_model(base, "float32")
    server = EmbeddedServer(loaded, read_base_shape(base), limits=Limits(max_adapters=2))
    async with (
        TestServer(server.application()) as running,
        EngineClient(str(running.make_url("")), base=read_base_shape(base)) as client,
    ):
        yield client


async def test_from_nothing_to_the_goal_and_onwards(engine: EngineClient, adapters: Named) -> None:
    (first, _), (second, _), (third, _) = adapters
    folders = dict(adapters)
    report = await reconcile(engine, {name: folders[name] for name in (first, second)})
    assert (report.loaded, report.unloaded, report.failed) == (sorted((first, second)), [], {})
    assert report.ready == {first, second}
    report = await reconcile(engine, {name: folders[name] for name in (first, second)})
    assert (report.loaded, report.kept) == ([], sorted((first, second)))
    # Full: the newcomer fits only once what is not wanted any more is gone.
    report = await reconcile(engine, {name: folders[name] for name in (first, third)})
    assert (report.loaded, report.unloaded, report.kept) == ([third], [second], [first])
    assert report.failed == {}
    assert set(await engine.loaded()) == {first, third}
    report = await reconcile(engine, {}, spare=[third])
    assert report.unloaded == [first]
    assert set(await engine.loaded()) == {third}


async def test_one_bad_adapter_does_not_stop_the_others(
    engine: EngineClient, adapters: Named, tmp_path: Path
) -> None:
    (bad, source), (good, folder), _ = adapters
    broken = tmp_path / bad
    shutil.copytree(source, broken)
    (broken / "adapter_model.safetensors").write_bytes(b"rubbish")
    missing = "gone@0123456789abcdef"
    report = await reconcile(engine, {bad: broken, good: folder, missing: tmp_path / "no"})
    assert report.loaded == [good]
    assert report.ready == {good}
    assert set(report.failed) == {bad, missing}
    assert "corrupt" in report.failed[bad]
    assert set(await engine.loaded()) == {good}


async def test_an_adapter_that_fails_its_probe_is_not_left_loaded(
    engine: EngineClient, adapters: Named, base: Path, tmp_path: Path
) -> None:
    from tests.serving.engines.building import make_adapter

    name, folder = make_adapter(base, tmp_path, task="loud", seed=9, alpha=1e30, strength=1e8)
    report = await reconcile(engine, {name: folder, adapters[1][0]: adapters[1][1]})
    assert "probe failed" in report.failed[name]
    assert report.ready == {adapters[1][0]}
    assert set(await engine.loaded()) == {adapters[1][0]}


async def test_without_an_engine_it_says_so() -> None:
    async with EngineClient("http://127.0.0.1:9") as nobody:
        with pytest.raises(EngineUnavailable, match="no engine answers"):
            await reconcile(nobody, {})
