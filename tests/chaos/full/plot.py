"""Curves over time as SVG: one panel for each, under each other, and nothing but text to write it with."""

from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, TOP, GAP = 900, 110, 110, 50, 45


def svg(
    title: str,
    x_s: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    marks_s: Sequence[float] = (),
) -> str:
    """The curves by name, each over the same seconds, the scale of each from zero to its highest.

    :param marks_s: when something happened
    """
    height = TOP + len(curves) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {height}">',
        "<style>text { font: 12px sans-serif }</style>",
        f'<rect width="100%" height="100%" fill="white"/><text x="10" y="18">{title}</text>',
    ]
    last_s = max(x_s, default=0) or 1
    marks = "".join(f"M{LEFT + WIDTH * at_s / last_s:.1f} {TOP}V{height - GAP}" for at_s in marks_s)
    parts.append(f'<path d="{marks}" stroke="#ddd" stroke-width="0.7"/>')
    for number, (name, values) in enumerate(curves.items()):
        parts.append(_panel(TOP + number * (HEIGHT + GAP), name, x_s, values))
    return "\n".join([*parts, "</svg>\n"])


def _panel(top: int, name: str, x_s: Sequence[float], values: Sequence[float]) -> str:
    highest, last_s = max(values, default=0) or 1, max(x_s, default=0) or 1
    points = " ".join(
        f"{LEFT + WIDTH * x / last_s:.1f},{top + HEIGHT * (1 - value / highest):.1f}"
        for x, value in zip(x_s, values, strict=True)
    )
    bottom, right = top + HEIGHT, LEFT + WIDTH
    decimals = 0 if highest >= 10 else 1
    return (
        f'<path d="M{LEFT} {top}V{bottom}H{right}" fill="none" stroke="#999"/>'
        f'<text x="{LEFT}" y="{top - 6}" font-weight="bold">{name}</text>'
        f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end">{highest:,.{decimals}f}</text>'
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">0</text>'
        f'<text x="{right}" y="{bottom + 15}" text-anchor="end">{last_s:,.0f} s</text>'
        f'<polyline points="{points}" fill="none" stroke="#0b62a4" stroke-width="1.5"/>'
    )
