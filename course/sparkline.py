"""Small pictures of a mistake as SVG: how far it is off, or what it gives beside what is expected, step by step.

Colours stand out on white and on black, and for colour-blind readers. The text depends on nothing but the numbers.
"""

import math
from collections.abc import Sequence

WIDTH, HEIGHT = 360, 120
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 24  # margins that hold the labels
_WRONG, _EXPECTED, _TEXT = "#d9722b", "#3f8fd2", "#808890"
_LOG_FROM = 30.0  # largest ÷ smallest distance from which the axis is logarithmic

Point = tuple[int, float]  # step, value


def distances(points: Sequence[Point]) -> str:
    """Distance from what is expected, by step. All distances are finite and not negative."""
    positive = [value for _, value in points if value > 0]
    if positive and len(positive) == len(points) and max(positive) / min(positive) >= _LOG_FROM:
        heights = [math.log10(value) for value in positive]
        return _picture(
            points, [(heights, _WRONG, "")], (min(heights), max(heights)), [min(positive), max(positive)]
        )
    top = max(value for _, value in points)
    return _picture(points, [([value for _, value in points], _WRONG, "")], (0.0, top), [0.0, top])


def against(got: Sequence[Point], expected: Sequence[float]) -> str:
    """What the mistake gives (solid) and what is expected (dashed), by step."""
    values = [value for _, value in got]
    low, high = min([*values, *expected]), max([*values, *expected])
    lines = [(list(expected), _EXPECTED, ' stroke-dasharray="5 4"'), (values, _WRONG, "")]
    return _picture(got, lines, (low, high), [low, high])


def number(value: float) -> str:
    """Four digits: what a reader takes in."""
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def _picture(
    points: Sequence[Point],
    lines: Sequence[tuple[list[float], str, str]],
    span: tuple[float, float],
    labels: Sequence[float],
) -> str:
    low, high = span
    steps = [step for step, _ in points]

    def x(step: int) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (step - steps[0]) / max(1, steps[-1] - steps[0])

    def y(value: float) -> float:
        part = (value - low) / (high - low) if high > low else 0.5
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * part

    floor = HEIGHT - _BOTTOM
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="11" fill="{_TEXT}">',
        f'<path d="M{_LEFT - 6} {_TOP}V{floor + 4}H{WIDTH - _RIGHT}" fill="none" stroke="{_TEXT}"/>',
        f'<text x="{_LEFT - 10}" y="{_TOP + 5}" text-anchor="end">{number(labels[1])}</text>',
        f'<text x="{_LEFT - 10}" y="{floor + 3}" text-anchor="end">{number(labels[0])}</text>',
    ]
    rows += [
        f'<text x="{x(step):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{step}</text>'
        for step in _ticks(steps)
    ]
    for values, color, style in lines:
        places = [(x(step), y(value)) for step, value in zip(steps, values, strict=True)]
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
        rows.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"{style}/>')
        rows += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{color}"/>' for px, py in places]
    return "\n".join([*rows, "</svg>"]) + "\n"


def _ticks(steps: Sequence[int]) -> list[int]:
    """The steps to write below the axis: those that have room."""
    room = (steps[-1] - steps[0]) / 10
    kept: list[int] = []
    for step in steps:
        if not kept or step - kept[-1] > room:
            kept.append(step)
    return kept
