"""Lines and words on a sheet, as SVG and as PNG. A few marks need no plotting library, and an SVG needs
no script, no font and no network, so it can be kept beside the evidence for as long as that."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

Point = tuple[float, float]
"""From the left and from the top, in pixels."""
FONT_PIXELS = 12
DASH, GAP = 5.0, 4.0


class NoPng(Exception):
    """The library that draws pixels is not installed here."""


@dataclass(frozen=True)
class Line:
    points: Sequence[Point]
    colour: str
    """``#rrggbb``."""
    dashed: bool = False
    pixels: int = 2


@dataclass(frozen=True)
class Words:
    """``y`` is the line that letters stand on."""

    x: float
    y: float
    text: str
    colour: str = "#333333"


Mark = Line | Words


@dataclass(frozen=True)
class Sheet:
    width: int
    height: int
    marks: Sequence[Mark]
    label: str
    """What it shows, for those who cannot see it."""


def box(left: float, top: float, right: float, bottom: float, colour: str = "#999999") -> Line:
    corners = ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
    return Line(corners, colour, pixels=1)


def svg(sheet: Sheet) -> str:
    marks = "".join(_svg_mark(mark) for mark in sheet.marks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {sheet.width} {sheet.height}" '
        f'font-family="sans-serif" role="img" aria-label="{escape(sheet.label)}">{marks}</svg>'
    )


def _svg_mark(mark: Mark) -> str:
    if isinstance(mark, Words):
        return (
            f'<text x="{mark.x:.1f}" y="{mark.y:.1f}" font-size="{FONT_PIXELS}" '
            f'fill="{mark.colour}">{escape(mark.text)}</text>'
        )
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in mark.points)
    dash = f' stroke-dasharray="{DASH:g} {GAP:g}"' if mark.dashed else ""
    return (
        f'<polyline points="{path}" fill="none" stroke="{mark.colour}" '
        f'stroke-width="{mark.pixels}"{dash}/>'
    )


def png(sheet: Sheet, scale: int = 2) -> bytes:
    """``scale``: pixels of the image for one of the sheet. Raises NoPng."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise NoPng("a PNG needs Pillow: pip install pillow, or ask for .svg or .html") from error
    image = Image.new("RGB", (sheet.width * scale, sheet.height * scale), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(FONT_PIXELS * scale)
    for mark in sheet.marks:
        if isinstance(mark, Words):
            place = (mark.x * scale, mark.y * scale)
            draw.text(place, mark.text, mark.colour, font, anchor="ls")
            continue
        for part in _dashes(mark.points) if mark.dashed else (mark.points,):
            pixels = [(x * scale, y * scale) for x, y in part]
            draw.line(pixels, mark.colour, mark.pixels * scale)
    written = io.BytesIO()
    image.save(written, "PNG", optimize=True)
    return written.getvalue()


def _dashes(points: Sequence[Point]) -> Iterable[Sequence[Point]]:
    for (x, y), (to_x, to_y) in pairwise(points):
        length = math.hypot(to_x - x, to_y - y)
        for number in range(math.ceil(length / (DASH + GAP))):
            begin = number * (DASH + GAP) / length
            end = min(begin + DASH / length, 1.0)
            yield tuple((x + (to_x - x) * at, y + (to_y - y) * at) for at in (begin, end))
