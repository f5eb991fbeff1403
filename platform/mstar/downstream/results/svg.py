"""Small SVG drawings that follow the page's colours, light or dark, and load nothing.

A drawing of one study is some kilobytes, so a page with hundreds of them opens at once. Colours are
CSS classes (m0, m1 …: one a method or class; ax, grid, …), defined in page.css.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Number = int | float  # places and sizes; the run-time checks hold ints not to be floats
Attribute = str | int | float
SHAPES = ("circle", "square", "diamond", "triangle", "cross", "ring")
NUM_COLORS = 8


def tag(name: str, *content: str, **attributes: Attribute | None) -> str:
    """An element; attributes are escaped (`class_` is class, `_` becomes `-`), content is not."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(content)
    return f"<{name}{shown}>{inner}</{name}>" if inner or name in _PAIRED else f"<{name}{shown}/>"


_PAIRED = ("text", "td", "th", "span", "div", "p", "ul", "li", "option", "select", "button", "a")


def text(words: str) -> str:
    """Text as content."""
    return escape(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A drawing's area and its scales; y points up."""

    width: Number
    height: Number
    left: Number = 40
    right: Number = 8
    top: Number = 10
    bottom: Number = 34
    x0: Number = 0.0
    x1: Number = 1.0
    y0: Number = 0.0
    y1: Number = 1.0

    def x(self, value: Number) -> float:
        """Place of a value; outside the range it is at the edge."""
        share = (value - self.x0) / (self.x1 - self.x0)
        return self.left + min(1.0, max(0.0, share)) * (self.width - self.left - self.right)

    def y(self, value: Number) -> float:
        """Place of a value."""
        share = (value - self.y0) / (self.y1 - self.y0)
        return self.top + (1 - min(1.0, max(0.0, share))) * (self.height - self.top - self.bottom)

    def svg(self, title: str, *content: str, class_: str = "plot") -> str:
        """The drawing with a title that is read aloud."""
        size = f"0 0 {self.width:g} {self.height:g}"
        return tag(
            "svg",
            tag("title", text(title)),
            *content,
            class_=class_,
            viewBox=size,
            role="img",
            width=self.width,
            height=self.height,
        )

    def axes(
        self, x_label: str, y_label: str, x_ticks: Sequence[Number], y_ticks: Sequence[Number]
    ) -> str:
        """Axes with ticks, a light grid and labels."""
        floor, edge = self.height - self.bottom, self.left
        parts = []
        for tick in x_ticks:
            at = self.x(tick)
            parts.append(line(at, self.top, at, floor, "grid"))
            parts.append(words(at, floor + 12, f"{tick:g}", "tick", "middle"))
        for tick in y_ticks:
            at = self.y(tick)
            parts.append(line(edge, at, self.width - self.right, at, "grid"))
            parts.append(words(edge - 4, at + 3, f"{tick:g}", "tick", "end"))
        middle = (edge + self.width - self.right) / 2
        parts.append(words(middle, self.height - 4, x_label, "label", "middle"))
        half = (self.top + floor) / 2
        turned = f"rotate(-90 10 {half:.1f})"
        parts.append(words(10, half, y_label, "label", "middle", transform=turned))
        return "".join(parts)

    def path(self, xs: Sequence[Number], ys: Sequence[Number], class_: str) -> str:
        """A line through points."""
        points = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in zip(xs, ys, strict=True))
        return tag("polyline", points=points, class_=f"line {class_}")

    def band(
        self, xs: Sequence[Number], low: Sequence[Number], high: Sequence[Number], class_: str
    ) -> str:
        """The area between two lines."""
        there = [f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in zip(xs, high, strict=True)]
        back = [f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in zip(xs, low, strict=True)]
        return tag("polygon", points=" ".join(there + back[::-1]), class_=f"band {class_}")


def line(x1: Number, y1: Number, x2: Number, y2: Number, class_: str) -> str:
    """A straight line."""
    return tag("line", x1=_short(x1), y1=_short(y1), x2=_short(x2), y2=_short(y2), class_=class_)


def words(
    x: Number, y: Number, said: str, class_: str, anchor: str = "start", **more: Attribute
) -> str:
    """Text at a place."""
    place: dict[str, Attribute] = {"x": _short(x), "y": _short(y), "text_anchor": anchor}
    return tag("text", text(said), class_=class_, **place, **more)


def marker(
    x: Number, y: Number, shape: int, class_: str, title: str = "", size: Number = 4.5
) -> str:
    """A method's mark: colour by encoder, shape by head, so that colour is never alone."""
    inner = tag("title", text(title)) if title else ""
    kind, s = SHAPES[shape % len(SHAPES)], size
    if kind in ("circle", "ring"):
        filled = "hollow" if kind == "ring" else "dot"
        return tag("circle", inner, cx=_short(x), cy=_short(y), r=s, class_=f"{filled} {class_}")
    outlines = {
        "square": ((-s, -s), (s, -s), (s, s), (-s, s)),
        "diamond": ((0, -s * 1.3), (s * 1.3, 0), (0, s * 1.3), (-s * 1.3, 0)),
        "triangle": ((0, -s * 1.2), (s * 1.2, s), (-s * 1.2, s)),
        "cross": (
            (-s, -s),
            (0, -s / 3),
            (s, -s),
            (s / 3, 0),
            (s, s),
            (0, s / 3),
            (-s, s),
            (-s / 3, 0),
        ),
    }
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in outlines[kind])
    return tag("polygon", inner, points=points, class_=f"dot {class_}")


def ticks(low: Number, high: Number, about: int = 5) -> list[float]:
    """Round numbers from low to high."""
    raw = max(high - low, 1e-9) / about
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(at * step, 9) for at in range(first, last + 1)]


def _text(value: Attribute) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(value: Number) -> float:
    return round(float(value), 1)
