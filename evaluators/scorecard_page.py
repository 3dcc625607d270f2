"""A judgement on one page, for a person who has a minute. Pure; no text of any call is on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluators.pages import Block, Heading, Items, Picture, Table, Words
from evaluators.risk_coverage import Point, draw

MAX_REASONS, MAX_SLICES, MAX_WORST = 8, 14, 20
ANSWERERS = {
    "served": "what callers get",
    "adapter": "adapter alone",
    "incumbent": "incumbent",
    "teacher": "teacher",
    "base": "base model",
}
"""Key of a scorecard to what its row is called, in the order of the rows."""
_VERDICTS = {"pass": "passes", "fail": "fails", "inconclusive": "is not decided"}


@dataclass(frozen=True)
class Price:
    """What answering costs, in the currency of the settings."""

    teacher: float
    """Per million tokens."""
    small: float


def costs_per_thousand(
    price: Price, cards: Mapping[str, Mapping[str, Any]], coverage: float
) -> dict[str, float]:
    """Cost of a thousand calls by answerer; those whose tokens were not counted are left out.

    The teacher is taken to read the whole prompt, as the base model does, and to answer as briefly as
    the adapter: its own tokens are counted in calls, not in test rows.
    """
    tokens = {name: card.get("tokens") or {} for name, card in cards.items()}
    found = {
        name: 1000 * sum(tokens[name].values()) * price.small / 1e6
        for name in ("adapter", "base", "incumbent")
        if tokens.get(name)
    }
    if tokens.get("base") and tokens.get("adapter"):
        asked = tokens["base"]["prompt"] + tokens["adapter"]["completion"]
        found["teacher"] = 1000 * asked * price.teacher / 1e6
        found["served"] = found["adapter"] + (1 - coverage) * found["teacher"]
    return found


def scorecard_page(judgement: Mapping[str, Any]) -> tuple[str, list[Block]]:
    """Title and blocks of ``Judgement.to_json`` read back; what an older one lacks is left out."""
    cards: Mapping[str, Mapping[str, Any]] = judgement["scorecards"]
    gate = judgement["gate"]
    title = f"{judgement['adapter']} {_VERDICTS.get(judgement['verdict'], judgement['verdict'])}"
    blocks: list[Block] = [
        Items(list(judgement["reasons"])[:MAX_REASONS]),
        _answerers(cards, judgement.get("costs") or {}),
        *_kind(cards.get("adapter", {}).get("details") or {}),
    ]
    calibration = (gate.get("evidence") or {}).get("calibration") or {}
    curves = (judgement.get("risk_coverage") or {}).get("curves") or {}
    if curves:
        blocks += [Heading("How sure it must be"), *_curve(judgement, calibration)]
    blocks += [Heading("By part of the traffic"), _slices(cards)]
    stages = _stages(cards)
    if stages.rows:
        blocks += [Heading("Where answers go wrong"), stages]
    worst = cards.get("adapter", {}).get("worst") or ()
    if worst:
        blocks += [
            Heading(f"Its {min(len(worst), MAX_WORST)} worst answers"),
            Words("`nightschool lineage CALL` finds a call; `nightschool judge` shows the texts."),
            _worst(worst, judgement.get("threshold")),
        ]
    blocks.append(Words(f"Data set {judgement['dataset_digest'][:16]}, frozen before training."))
    return title, blocks


def _kind(details: Mapping[str, Any]) -> list[Block]:
    """What kind of task it is, and how its kind is judged as a whole."""
    if not details:
        return []
    told = [f"Judged as {details['kind'].replace('_', ' ')}: {details['why']}."]
    labels, steps = details.get("labels"), details.get("steps")
    if labels:
        told.append(
            f"{labels['classes']} classes, accuracy {_share(labels['accuracy'])}, macro F1 "
            f"{labels['macro_f1']:.3f}."
        )
    if steps:
        told.append(
            f"In {steps['sessions']} sessions of several steps {_share(steps['values'])} of the calls "
            f"are right, in whatever order; in {_share(steps['all_right'])} of them all are."
        )
    return [Words(" ".join(told))]


def _answerers(cards: Mapping[str, Mapping[str, Any]], costs: Mapping[str, float]) -> Table:
    rows = []
    for key, called in ANSWERERS.items():
        card = cards.get(key)
        if card is None:
            continue
        latency, tokens = card.get("latency_seconds") or {}, card.get("tokens") or {}
        rows.append(
            [
                called if key in ("served", "adapter") else f"{called}: {card['answerer']}",
                _share(card["mean"]),
                f"{_share(card['interval']['low'])} to {_share(card['interval']['high'])}",
                str(card["rows"]),
                _number(latency.get("p50"), "{:.2f} s"),
                _number(latency.get("p95"), "{:.2f} s"),
                "{prompt:.0f} + {completion:.0f}".format(**tokens) if tokens else "-",
                _number(costs.get(key), "{:.2f}"),
            ]
        )
    names = ["", "right", "95 %", "rows", "p50", "p95", "tokens in + out", "cost of 1,000 calls"]
    return Table(names, rows)


def _curve(judgement: Mapping[str, Any], calibration: Mapping[str, Any]) -> list[Block]:
    found = judgement["risk_coverage"]
    curves = {
        name.replace("_", " "): [Point(*point) for point in points]
        for name, points in found["curves"].items()
    }
    served = Point(*found["served"]) if found.get("served") else None
    said = (
        "nothing is certified, so nothing would be shown"
        if judgement.get("threshold") is None
        else f"shown from a confidence ({judgement.get('confidence', 'mean').replace('_', ' ')}) of "
        f"{judgement['threshold']:.4g}: certified on {calibration.get('rows', 0)} validation rows"
    )
    if served is not None:
        said += (
            f"; on the test rows it answers {_share(served.coverage)} of the calls, of which "
            f"{_share(served.risk)} are wrong, where {_share(found['risk'])} are tolerated"
        )
    compared = calibration.get("compared") or {}
    if compared:
        certified = (
            f"{name.replace('_', ' ')} {_share(share)}" for name, share in compared.items()
        )
        said += f". Certified coverage by score: {', '.join(certified)}"
    picture = draw(curves, found["risk"], served, found.get("needed", 0.0))
    return [
        Picture(picture, "errors among the shown answers by the share shown"),
        Words(said + "."),
    ]


def _slices(cards: Mapping[str, Mapping[str, Any]]) -> Table:
    own = cards.get("adapter", {}).get("slices") or {}
    others = [key for key in ("served", "incumbent") if (cards.get(key) or {}).get("slices")]
    # The weakest of each kind first: they are what one reads this for.
    order = sorted(own, key=lambda name: (name.partition("=")[0], own[name]["mean"]))
    rows = [
        [
            name,
            str(own[name]["rows"]),
            _share(own[name]["mean"]),
            f"{_share(own[name]['low'])} to {_share(own[name]['high'])}"
            if "low" in own[name]
            else "",
            *(_share((cards[key]["slices"].get(name) or {}).get("mean")) for key in others),
        ]
        for name in _few_of_each(order)
    ]
    return Table(["", "rows", "adapter", "95 %", *(ANSWERERS[key] for key in others)], rows)


def _few_of_each(names: Sequence[str]) -> list[str]:
    kinds = {name.partition("=")[0] for name in names}
    most = max(1, MAX_SLICES // max(1, len(kinds)))
    taken: dict[str, int] = {}
    found = []
    for name in names:
        kind = name.partition("=")[0]
        taken[kind] = taken.get(kind, 0) + 1
        if taken[kind] <= most:
            found.append(name)
    return found


def _stages(cards: Mapping[str, Mapping[str, Any]]) -> Table:
    keys = [key for key in ANSWERERS if (cards.get(key) or {}).get("stages")]
    own = cards.get("adapter", {}).get("stages") or {}
    rows = []
    for stage, found in own.items():
        interval = f" ({_share(found['low'])} to {_share(found['high'])})" if "low" in found else ""
        cells = [
            _share((cards[key]["stages"].get(stage) or {}).get("mean"))
            + (interval if key == "adapter" else "")
            for key in keys
        ]
        rows.append([stage, str(int(found["rows"])), *cells])
    return Table(["", "rows", *(ANSWERERS[key] for key in keys)], rows)


def _worst(worst: Sequence[Mapping[str, Any]], threshold: float | None) -> Table:
    rows = []
    for row in list(worst)[:MAX_WORST]:
        wrong = [stage for stage, value in row["stages"].items() if value < 1]
        sure = row.get("confidence")
        shown = (
            not row.get("checks")
            and not row.get("error")
            and sure is not None
            and threshold is not None
            and sure >= threshold
        )
        why = row.get("error") or row.get("checks") or ", ".join(wrong)
        rows.append(
            [
                str(row["example_id"]),
                _share(row["correct"]),
                str(why),
                _number(sure, "{:.3g}"),
                "shown" if shown else "teacher",
            ]
        )
    return Table(["call", "right", "wrong in", "confidence", "who answers"], rows)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
