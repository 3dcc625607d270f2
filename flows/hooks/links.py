"""The pages behind a message's buttons: a look (GET) shows what would be done, a press (POST) does it.

Whoever has the link may do the one thing it is for, to the one rollout it names, until it expires. A
look changes nothing, so a chat that fetches addresses to show what is behind them does no harm. What
is asked for is checked at the moment of the press: a link from an old message cannot take back what was
brought in since.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import get_args

from aiohttp import web

from flows.wiring import Context
from infra.calls.record import utc_now
from infra.notify.links import PATH, purpose
from infra.notify.message import Doing
from infra.signed_links import LinkInvalid, LinkSigner
from infra.signing_keys import signing_keys
from serving.registry.errors import IllegalState, NothingToRollBack, RegistryError, UnknownRollout
from serving.registry.records import Rollout
from serving.registry.registry import Registry
from serving.rollout.controller import last_rollout, rollback
from serving.rollout.messages import exposure
from serving.rollout.orders import give_order, obstacle

logger = logging.getLogger(__name__)

MAX_NAME, MAX_WHY = 60, 300
HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-robots-tag": "noindex",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
}
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem;"
    "color:#1c1c1c}h1{font-size:1.4rem}dt{color:#666;font-size:.85rem}dd{margin:0 0 .7rem}"
    "label{display:block;margin:.7rem 0}input{font:inherit;width:100%;box-sizing:border-box;"
    "padding:.4rem}button{font:inherit;padding:.6rem 1.4rem;border:0;border-radius:.3rem;"
    "background:#1b6e3c;color:#fff}button.stop{background:#b3261e}"
)


@dataclass(frozen=True)
class _Words:
    question: str
    effect: str
    button: str
    done: str


WORDS: dict[Doing, _Words] = {
    "approve": _Words(
        "Promote {adapter}?",
        "At the next look it becomes the champion of {task} and answers all its sessions, if it is "
        "still shown as good.",
        "Approve the promotion",
        "Approved. It is promoted at the next look, if it is still shown as good.",
    ),
    "pause": _Words(
        "Pause the rollout of {adapter}?",
        "It is taken off all sessions of {task} and stays loaded; the rollout can be resumed.",
        "Pause",
        "Paused: no session is answered by it.",
    ),
    "resume": _Words(
        "Go on with the rollout of {adapter}?",
        "It answers its share of the sessions of {task} again.",
        "Resume",
        "Resumed where it was.",
    ),
    "abort": _Words(
        "End the rollout of {adapter} and keep the champion?",
        "The rollout ends without a verdict. The adapter is not rejected and may be brought in again.",
        "Keep the champion",
        "Ended: the champion stays.",
    ),
    "rollback": _Words(
        "Roll {adapter} back?",
        "It is taken off {task} at once and rejected for good; the one before it answers.",
        "Roll back",
        "Rolled back: it is rejected and never tried again.",
    ),
}


class ActionPages:
    """The pages. ``register`` adds them to an application.

    Args:
        channels: names of the channels that hear of what was done.
        deliver: sends what is due; called in a thread after something was done.
    """

    def __init__(
        self,
        registry: Registry,
        signer: LinkSigner,
        channels: tuple[str, ...],
        deliver: Callable[[], object],
    ) -> None:
        self._registry = registry
        self._signer = signer
        self._channels = channels
        self._deliver = deliver
        self._delivering: set[asyncio.Task[None]] = set()

    def register(self, app: web.Application) -> None:
        app.router.add_get(PATH + "/{what}/{token}", self._ask)
        app.router.add_post(PATH + "/{what}/{token}", self._act)
        # What Slack calls when a button is pressed, also one that only opens an address.
        app.router.add_post("/slack/pressed", self._acknowledge)

    async def _acknowledge(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _ask(self, request: web.Request) -> web.Response:
        try:
            what, rollout_id = self._permitted(request)
            return await asyncio.to_thread(self._question, what, rollout_id)
        except _Refused as refused:
            return refused.page()

    async def _act(self, request: web.Request) -> web.Response:
        try:
            what, rollout_id = self._permitted(request)
            form = await request.post()
            name = " ".join(str(form.get("name", "")).split())[:MAX_NAME]
            why = " ".join(str(form.get("why", "")).split())[:MAX_WHY]
            page = await asyncio.to_thread(
                self._do,
                what,
                rollout_id,
                # Whoever holds the link may write any name: the events say how it was given.
                f"{name} (by link)" if name else "link",
                why or "by a link in a message",
            )
        except _Refused as refused:
            return refused.page()
        task = asyncio.create_task(self._tell())
        self._delivering.add(task)
        task.add_done_callback(self._delivering.discard)
        return page

    def _permitted(self, request: web.Request) -> tuple[Doing, str]:
        what: Doing = request.match_info["what"]  # type: ignore[assignment]
        if what not in get_args(Doing):
            raise _Refused(404, "There is no such link.")
        try:
            link = self._signer.check(purpose(what), request.match_info["token"])
        except LinkInvalid as error:
            told = str(error)
            raise _Refused(403, f"{told[0].upper()}{told[1:]}.") from None
        return what, link.subject

    def _question(self, what: Doing, rollout_id: str) -> web.Response:
        rollout = self._rollout(rollout_id)
        problem = self._obstacle(what, rollout)
        if problem is not None:
            raise _Refused(409, f"This cannot be done any more: {problem}.")
        words = WORDS[what]
        route = self._registry.route(rollout.task_id)
        named = {"adapter": rollout.adapter, "task": rollout.task_id}
        facts = {
            "Task": rollout.task_id,
            "Where it stands": f"{rollout.state}{', paused' if rollout.paused else ''}, "
            f"{rollout.sessions} canary sessions",
            "Exposed": exposure(route),
            "Last said of it": rollout.reason,
            "What this does": words.effect.format(**named),
        }
        if what == "approve":
            facts["Without an answer"] = (
                f"the champion stays after {rollout.deadline:%Y-%m-%d %H:%M} UTC"
            )
        rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
        stops = ' class="stop"' if what in ("rollback", "abort", "pause") else ""
        form = (
            "<form method=post>"
            f"<label>Your name, for the record<input name=name maxlength={MAX_NAME}></label>"
            f"<label>Why<input name=why maxlength={MAX_WHY}></label>"
            f"<button{stops}>{escape(words.button)}</button></form>"
        )
        return _page(200, words.question.format(**named), f"<dl>{rows}</dl>{form}")

    def _do(self, what: Doing, rollout_id: str, actor: str, why: str) -> web.Response:
        rollout = self._rollout(rollout_id)
        try:
            if what == "rollback":
                route = rollback(
                    self._registry,
                    rollout.task_id,
                    actor=actor,
                    why=why,
                    channels=self._channels,
                    only=rollout.id,
                )
            else:
                give_order(
                    self._registry, rollout.id, what, actor=actor, why=why, channels=self._channels
                )
                route = self._registry.route(rollout.task_id)
        except (IllegalState, NothingToRollBack) as error:
            why_not = self._obstacle(what, rollout) or str(error)
            raise _Refused(409, f"Nothing was done: {why_not}.") from None
        except RegistryError as error:
            raise _Refused(503, f"Nothing was done, try again: {error}.") from None
        return _page(200, WORDS[what].done, f"<p>{escape(exposure(route))}</p>")

    def _rollout(self, rollout_id: str) -> Rollout:
        try:
            return self._registry.rollout(rollout_id)
        except UnknownRollout:
            raise _Refused(404, "The rollout of this link is not there any more.") from None

    def _obstacle(self, what: Doing, rollout: Rollout) -> str | None:
        if what != "rollback":
            return obstacle(self._registry, rollout.id, what, utc_now())
        route = self._registry.route(rollout.task_id)
        with self._registry.database.read() as connection:
            if last_rollout(connection, route) == rollout.id:
                return None
        if rollout.adapter == (route.candidate or route.champion):
            return f"this link is out of date: {rollout.adapter} was brought in again since"
        return (
            f"this link is out of date: {rollout.adapter} is not what was brought in last in "
            f"{rollout.task_id}"
        )

    async def _tell(self) -> None:
        try:
            await asyncio.to_thread(self._deliver)
        except Exception:
            # It is done and in the outbox; whoever delivers next sends it.
            logger.exception("what was done by a link is not told yet")


def action_pages(context: Context) -> ActionPages:
    """Raises SigningKeyError: there is no key to check links with."""
    return ActionPages(
        context.registry,
        LinkSigner(signing_keys(context.settings.hooks)),
        tuple(context.channels),
        context.deliver_messages,
    )


class _Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self._status = status

    def page(self) -> web.Response:
        return _page(self._status, "Nothing was changed", f"<p>{escape(str(self))}</p>")


def _page(status: int, title: str, body: str) -> web.Response:
    text = (
        '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width='
        f'device-width,initial-scale=1"><title>{escape(title)}</title><style>{STYLE}</style>'
        f"<h1>{escape(title)}</h1>{body}</html>"
    )
    return web.Response(text=text, status=status, content_type="text/html", headers=HEADERS)
