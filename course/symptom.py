"""The first symptom of a known mistake, from its fingerprint: which comparison fails, with what, by how much.

`first_symptom(bank, entry)` looks at the tests that the entry names, the basic ones first. Where such a test saw one
quantity at three steps or more, there is a small picture of it, unless it would show nothing but a constant.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from course import sparkline
from course.fingerprints import Bank, Sight
from course.lang import tr
from course.mistakes import Entry

_FEWEST_POINTS = 3
_FLAT = 0.05  # distances that differ by less, relative to the largest, are a number and no curve


@dataclass(frozen=True)
class Symptom:
    """What a mistake first shows. `miss` is (name, step, brief value, distance), see course/recorder.py."""

    test: str  # the test case
    sight: Sight
    miss: list[Any] | None  # None: the test ended with an exception
    failing: int  # test cases that fail
    figure: str = ""  # SVG
    figure_of: str = ""  # the quantity in the figure
    figure_test: str = ""
    against: bool = False  # the figure shows values beside the expected ones, not distances


def function(case: str) -> str:
    """`basic_test::test_x[cpu-1]` → `test_x`."""
    return case.partition("::")[2].partition("[")[0]


def first_symptom(bank: Bank, entry: Entry, noted: frozenset[str] = frozenset()) -> Symptom:
    """`noted` are the names that tests record without comparing them (`observe`)."""
    fails = bank.fails[entry.id]
    order = [case for case in bank.tests if case in fails]
    order.sort(key=lambda case: function(case) not in entry.caught_by)
    first = order[0]
    misses = [miss for miss in fails[first].misses if miss[0] not in noted]
    miss = next((m for m in misses if m[3] is not None), misses[0] if misses else None)
    symptom = Symptom(first, fails[first], miss, len(fails))
    for case in order:
        if figure := _figure(fails[case]):
            text, quantity, against = figure
            return Symptom(first, fails[first], miss, len(fails), text, quantity, case, against)
    return symptom


def _figure(sight: Sight) -> tuple[str, str, bool] | None:
    """(SVG, quantity, whether it shows values) of the longest series in what a test saw; None without one."""
    series: dict[str, list[list[Any]]] = {}
    for miss in sight.misses:
        if miss[1] is not None and isinstance(miss[3], float) and math.isfinite(miss[3]):
            series.setdefault(miss[0], []).append(miss)
    name = max(series, key=lambda key: len(series[key]), default="")
    rows = series.get(name, [])
    if len({row[1] for row in rows}) < max(_FEWEST_POINTS, len(rows)):  # too few, or a step twice
        return None
    rows = sorted(rows, key=lambda row: row[1])
    if all(_is_number(row[2]) for row in rows):
        got = [(row[1], float(row[2])) for row in rows]
        expected = [value - row[3] for (_, value), row in zip(got, rows, strict=True)]
        if _constant([value for _, value in got]) and _constant(expected):
            return None
        return sparkline.against(got, expected), name, True
    values = [(row[1], abs(row[3])) for row in rows]
    largest = max(value for _, value in values)
    if largest - min(value for _, value in values) < _FLAT * largest:
        return None
    return sparkline.distances(values), name, False


def _constant(values: list[float]) -> bool:
    return all(math.isclose(value, values[0], rel_tol=1e-4) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# --------------------------------------------------------------------------------------------------- in words


def sentence(symptom: Symptom) -> str:
    """The first symptom as Markdown, in the language in force."""
    sight, miss = symptom.sight, symptom.miss
    if miss is None:
        return _ends_with(sight.raised, sight.where)
    name, step, value, distance = miss
    at = "" if step is None else tr(f", step {step}", f"，第 {step} 步")
    if name in ("the error raised", "抛出的异常"):
        if value is None:
            return tr("no error, where one is expected", "该报错的地方没有报错")
        return tr(f"`{value}`, where another error is expected", f"抛出 `{value}`，而不是应有的异常")
    got = shown(value)
    space = " " if got.startswith("`") else ""
    return (
        f"`{name}`{at}"
        + tr(f": got {got}", f"：得到{space}{got}")
        + _off(value, distance)
        + _goes_on(sight.after)
    )


def _ends_with(raised: str, where: str) -> str:
    if raised == "TimeLimitExceeded":
        return tr("the test does not end", "测试停不下来")
    place = f" `{where}`" if where else ""
    return tr(f"ends with `{raised}`", f"以 `{raised}` 结束") + (
        tr(f" in{place}", f"，出自{place}") if place else ""
    )


def _goes_on(after: str) -> str:
    return tr(f"; then `{after}`", f"；随后 `{after}`") if after and after != "todo" else ""


def _off(value: Any, distance: Any) -> str:
    if distance is None:
        return tr(", which is not what is expected", "，与应有的不同")
    if isinstance(distance, str):  # nan or inf
        return tr(f", at a distance of {distance}", f"，距离为 {distance}")
    if distance == 0:
        return tr(", the right number in the wrong type", "，数值对，类型不对")
    if _is_number(value):
        size = sparkline.number(abs(distance))
        return tr(
            f", too {'large' if distance > 0 else 'small'} by {size}",
            f"，偏{'大' if distance > 0 else '小'} {size}",
        )
    size = sparkline.number(distance)
    return tr(f", {size} away from what is expected", f"，与应有的值相距 {size}")


def shown(value: Any) -> str:
    """A brief value (course/recorder.py) as Markdown."""
    if isinstance(value, list) and value:
        kind, *rest = value
        tensor = re.fullmatch(r"(\w+)\[([\d, ]*)\]", str(kind))
        if tensor:
            return _tensor(tensor[1], tensor[2], rest)
        word, _, count = str(kind).partition(" ")
        items = ", ".join(_item(item) for item in rest)
        more = ", …" if count.isdigit() and len(rest) < int(count) else ""
        return f"`{'{' if word == 'dict' else '['}{items}{more}{'}' if word == 'dict' else ']'}`"
    return f"`{_item(value)}`"


def _tensor(dtype: str, shape: str, numbers: Iterable[Any]) -> str:
    sizes = [int(size) for size in shape.split(",") if size.strip()]
    values = [_item(number) for number in numbers]
    if math.prod(sizes) <= 4:
        return f"`{values[0]}`" if not sizes else f"`[{', '.join(values)}]`"
    return tr(
        f"a {dtype} tensor of shape `[{shape}]` and norm `{values[1]}`",
        f"形状 `[{shape}]`、范数 `{values[1]}` 的 {dtype} 张量",
    )


def _item(value: Any) -> str:
    return sparkline.number(value) if isinstance(value, float) else str(value)
