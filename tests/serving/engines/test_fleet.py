"""A fleet of real engine processes: who is asked, who steps in, and who comes back when."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from infra.artifacts.base import read_base_shape
from serving.engines.client import EngineClient
from serving.engines.fleet import Fleet
from serving.engines.protocol import EngineRefused, EngineTimeout, EngineUnavailable
from tests.serving.engines.building import EngineProcess, start_engine
from tests.serving.gateway.world import until

Named = list[tuple[str, Path]]
PROMPT = "<|im_start|>user\nturn on the light<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def processes(base: Path) -> Iterator[list[EngineProcess]]:
    """Two engines that every test leaves alive."""
    with two(base) as engines:
        yield engines


@pytest.fixture
def mortals(base: Path) -> Iterator[list[EngineProcess]]:
    """Two engines of the test's own."""
    with two(base) as engines:
        yield engines


@contextmanager
def two(base: Path) -> Iterator[list[EngineProcess]]:
    with ExitStack() as stack:
        yield [stack.enter_context(start_engine(base)) for _ in range(2)]


def over(processes: list[EngineProcess], base: Path) -> Fleet:
    shape = read_base_shape(base)
    return Fleet([EngineClient(process.url, base=shape) for process in processes])


@pytest.fixture
async def fleet(processes: list[EngineProcess], base: Path) -> AsyncIterator[Fleet]:
    """Without any adapter, whatever the test before left."""
    async with over(processes, base) as fleet:
        await hold(fleet, [])
        yield fleet


def nothing_spared(_listed: object) -> set[str]:
    return set()


async def hold(fleet: Fleet, goal: Named) -> dict[str, str]:
    return (await fleet.hold(dict(goal), nothing_spared, patience_seconds=30)).reasons


async def ask(fleet: Fleet, name: str | None, max_tokens: int = 16) -> int:
    answer = await fleet.complete(name, PROMPT, max_tokens=max_tokens, stop=())
    return answer.completion_tokens


async def load_until(stop: asyncio.Event, call: Callable[[], object]) -> list[object]:
    """Callers, eight at a time, who never pause; what they got."""
    outcomes: list[object] = []

    async def caller() -> None:
        while not stop.is_set():
            try:
                outcomes.append(await call())  # type: ignore[misc]
            except Exception as error:  # noqa: BLE001 - the test looks at it
                outcomes.append(error)

    await asyncio.gather(*(caller() for _ in range(8)))
    return outcomes


async def test_no_call_fails_when_a_replica_is_killed_under_load(
    mortals: list[EngineProcess], adapters: Named, base: Path
) -> None:
    async with over(mortals, base) as fleet:
        await killed_under_load(fleet, mortals, adapters, base)


async def killed_under_load(
    fleet: Fleet, processes: list[EngineProcess], adapters: Named, base: Path
) -> None:
    name = adapters[0][0]
    assert await hold(fleet, adapters) == {}
    stop = asyncio.Event()
    calls = asyncio.create_task(load_until(stop, lambda: ask(fleet, name)))
    first, second = fleet.replicas
    await until(lambda: first.calls and second.calls)
    os.kill(processes[0].pid, signal.SIGKILL)
    await until(lambda: not first.sure)
    # It is asked last: everybody is at the other one now, and goes on being answered.
    await until(lambda: not first.calls)
    stop.set()
    outcomes = await calls
    assert [outcome for outcome in outcomes if isinstance(outcome, Exception)] == []
    assert set(outcomes) == {16}

    # Its successor is empty: it gets its adapters before it gets their calls.
    problems = await hold(fleet, adapters)
    assert list(problems) == [processes[0].url]
    with start_engine(base, "--port", str(processes[0].port)):
        refused: list[str] = []
        engine_complete = first.engine.complete

        async def complete(model: str | None, *args: object, **more: object) -> object:
            try:
                return await engine_complete(model, *args, **more)  # type: ignore[arg-type]
            except EngineRefused as error:
                refused.append(str(error))
                raise

        first.engine.complete = complete  # type: ignore[method-assign,assignment]
        stop.clear()
        calls = asyncio.create_task(load_until(stop, lambda: ask(fleet, name)))
        assert await hold(fleet, adapters) == {}
        assert first.sure and name in first.holds
        await until(lambda: first.calls)
        stop.set()
        assert set(await calls) == {16}
        assert refused == []


async def test_calls_go_to_the_least_busy_and_one_at_a_time_to_the_same(
    fleet: Fleet, adapters: Named
) -> None:
    name = adapters[0][0]
    await hold(fleet, adapters[:1])
    alone = set()
    for _ in range(4):
        call = asyncio.create_task(ask(fleet, name, 2))
        while not call.done():
            alone |= {replica.engine.url for replica in fleet.replicas if replica.calls}
            await asyncio.sleep(0)
    assert len(alone) == 1, "its prefix cache knows the task's prompt"
    crowd = [asyncio.create_task(ask(fleet, name)) for _ in range(10)]
    await asyncio.sleep(0)
    assert [replica.calls for replica in fleet.replicas] == [5, 5]
    assert fleet.under_way(name) == 10
    await asyncio.gather(*crowd)
    assert fleet.under_way(name) == 0


async def test_an_adapter_on_one_replica_is_asked_there_and_a_loss_is_noticed(
    fleet: Fleet, adapters: Named
) -> None:
    name, folder = adapters[0]
    first, second = sorted(fleet.replicas, key=lambda replica: replica.rank(name))
    noticed: list[bool] = []
    fleet.lost = lambda: noticed.append(True)
    await second.engine.ensure_loaded(name, folder)
    await hold(fleet, [])  # it is not wanted yet: unloaded again
    assert fleet.ready == frozenset()
    await hold(fleet, adapters[:1])
    await first.engine.ensure_unloaded(name)  # as if it had restarted and nobody noticed
    for _ in range(6):
        assert await ask(fleet, name, 2) == 2
    assert noticed == [True]
    assert name not in first.holds and name in second.holds
    await hold(fleet, adapters[:1])
    assert name in first.holds


async def test_what_no_replica_holds_is_refused(fleet: Fleet, adapters: Named) -> None:
    with pytest.raises(EngineRefused) as refused:
        await ask(fleet, adapters[0][0])
    assert refused.value.status == 404


async def test_a_replica_that_hangs_holds_up_neither_calls_nor_the_tending_of_the_other(
    fleet: Fleet, processes: list[EngineProcess], adapters: Named
) -> None:
    name = adapters[0][0]
    os.kill(processes[0].pid, signal.SIGSTOP)
    try:
        problems = await fleet.hold(dict(adapters), nothing_spared, patience_seconds=5)
        assert list(problems.reasons) == [processes[0].url]
        assert fleet.ready == {name for name, _ in adapters}
        assert await ask(fleet, name, 2) == 2
        with pytest.raises(EngineTimeout):
            await fleet.replicas[0].engine.complete(None, PROMPT, max_tokens=2, timeout_seconds=0.2)
    finally:
        os.kill(processes[0].pid, signal.SIGCONT)


async def test_what_a_tending_found_between_two_passes_is_told_by_the_next(
    fleet: Fleet, adapters: Named, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    name = adapters[0][0]
    slow, _ = fleet.replicas
    go = asyncio.Event()
    listing = slow.engine.loaded

    async def wait_first() -> object:
        await go.wait()
        return await listing()

    slow.engine.loaded = wait_first  # type: ignore[method-assign, assignment]
    first = await fleet.hold({name: broken}, nothing_spared, patience_seconds=2)
    assert slow.engine.url in first.reasons, "it is slow"
    go.set()
    await until(lambda: fleet._tending[slow].done())
    go.clear()  # from now on it is slow again, so that only the finished tending can tell
    for replica in fleet.replicas:
        replica.engine.loaded = wait_first  # type: ignore[method-assign, assignment]
    second = await fleet.hold({name: broken}, nothing_spared, patience_seconds=0.2)
    assert name in second.refused and name in second.reasons
    # Told once, and nothing of what is no goal any more.
    third = await fleet.hold({}, nothing_spared, patience_seconds=0.2)
    assert name not in third.refused
    go.set()


async def test_a_stream_moves_before_its_first_word_and_never_after_until_nobody_is_left(
    mortals: list[EngineProcess], adapters: Named, base: Path
) -> None:
    async with over(mortals, base) as fleet:
        await streams(fleet, mortals, adapters)
        # The other one too: every call fails until the circuits open, then at once.
        for process in mortals:
            process.process.kill()
        for _ in range(8):
            with pytest.raises(EngineUnavailable):
                await ask(fleet, adapters[0][0])
        with pytest.raises(EngineUnavailable, match="no replica takes calls"):
            await ask(fleet, adapters[0][0])
        assert not await fleet.healthy()


async def streams(fleet: Fleet, processes: list[EngineProcess], adapters: Named) -> None:
    name = adapters[0][0]
    await hold(fleet, adapters[:1])
    whole = await fleet.complete(name, PROMPT, max_tokens=8, stop=())
    home = min(fleet.replicas, key=lambda replica: replica.rank(name))
    stream = fleet.stream(name, PROMPT, max_tokens=400, stop=())
    assert (await anext(stream)).finish_reason is None
    os.kill(next(p.pid for p in processes if p.url == home.engine.url), signal.SIGKILL)
    with pytest.raises(EngineUnavailable):
        async for _ in stream:
            pass
    home.sure = True  # as if nobody had noticed yet: the next call tries it first
    chunks = [chunk async for chunk in fleet.stream(name, PROMPT, max_tokens=8, stop=())]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert not home.sure


async def test_what_is_under_way_is_not_unloaded(fleet: Fleet, adapters: Named) -> None:
    name = adapters[0][0]
    await hold(fleet, adapters[:1])
    call = asyncio.create_task(ask(fleet, name, 400))
    await until(lambda: fleet.under_way(name))
    busy = next(replica for replica in fleet.replicas if replica.calls)
    await hold(fleet, [])
    assert name in (busy.listed or ()), "it has a call under way"
    assert await call == 400
    await hold(fleet, [])
    assert fleet.listed == frozenset()
