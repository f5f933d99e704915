"""Comparisons for lesson tests that say what was expected, from where, what was found, and where they part.

Tests get an `Expect` from the `expect` fixture. Every comparison also records what it saw (see `Recorder`),
so that the report holds a student's numbers step by step, and not only the verdict. A failed comparison does not
end a lesson test at once: the next few are made too, and the test ends with the first one.
"""

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import torch

from course.lang import tr
from course.recorder import Recorder

_MAX_LISTED = 8  # elements of a tensor that a message spells out
_RAISED = "the error raised"  # a name that fingerprints hold: translated only where it is shown


class Mismatch(AssertionError):
    """A comparison that failed, in parts that the plugin prints one a line."""

    def __init__(
        self, name: str, expected: str, got: str, source: str, step: int | None, detail: str = ""
    ) -> None:
        self.name, self.expected, self.got = name, expected, got
        self.source, self.step, self.detail = source, step, detail
        super().__init__("\n".join(f"{label}: {text}" for label, text in self.lines()))

    def lines(self) -> list[tuple[str, str]]:
        """(label, text) pairs in reading order, in the language in force."""
        where = "" if self.step is None else tr(f", step {self.step}", f"，第 {self.step} 步")
        name = tr(_RAISED, "抛出的异常") if self.name == _RAISED else self.name
        rows = [
            (tr("compared", "比较"), name + where),
            (tr("expected", "期望"), self.expected),
            (tr("from", "依据"), self.source),
            (tr("got", "得到"), self.got),
        ]
        return rows + ([(tr("differs", "差异"), self.detail)] if self.detail else [])


class Expect:
    """The `expect` fixture. See CONTRIBUTING.md for when to use which method."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def equal(self, name: str, got: Any, want: Any, *, source: str, step: int | None = None) -> None:
        """The same structure, shape, dtype and every element equal (NaN equals NaN, −0 equals 0)."""
        self._recorder.add(name, got, step)
        self._compare(name, got, want, source, step, atol=0.0, rtol=0.0, because="")

    def close(
        self,
        name: str,
        got: Any,
        want: Any,
        *,
        source: str,
        atol: float,
        because: str,
        rtol: float = 0.0,
        step: int | None = None,
    ) -> None:
        """|got − want| ≤ atol + rtol·|want| for every element; `because` is the reason for the tolerance."""
        self._recorder.add(name, got, step)
        self._compare(name, got, want, source, step, atol, rtol, because)

    def true(self, name: str, condition: Any, *, expected: Any, got: Any, step: int | None = None) -> None:
        """`condition` holds; `expected` and `got` are sentences or values to show when it does not."""
        self._recorder.add(name, bool(condition), step)
        if not condition:
            source = tr("the condition that the test names", "测试中的条件")
            self._miss(Mismatch(name, _show(expected), _show(got), source, step), got, None)

    @contextmanager
    def raises(self, kind: type[BaseException], *, match: str = "", source: str) -> Iterator[None]:
        """The block raises `kind` with `match` in its message. An unwritten task stays an unwritten task."""
        wanted = kind.__name__ + (f" ({match!r})" if match else "")
        try:
            yield
        except BaseException as error:
            if isinstance(error, NotImplementedError) and str(error).startswith("task "):
                raise
            if not isinstance(error, Exception):
                raise
            self._recorder.add("raised", type(error).__name__, None)
            if not isinstance(error, kind) or match not in str(error):
                got = f"{type(error).__name__}: {error}"
                mismatch = Mismatch(_RAISED, wanted, got, source, None)
                mismatch.__cause__ = error
                self._miss(mismatch, type(error).__name__, None)
            return
        self._recorder.add("raised", None, None)
        self._miss(Mismatch(_RAISED, wanted, tr("no error", "没有异常"), source, None), None, None)

    def _compare(
        self,
        name: str,
        got: Any,
        want: Any,
        source: str,
        step: int | None,
        atol: float,
        rtol: float,
        because: str,
    ) -> None:
        difference = _difference(got, want, atol, rtol, path="")
        if difference is None:
            return
        if atol or rtol:
            allowed = f"{atol:g}" + (f" + {rtol:g}·|x|" if rtol else "")
            source += tr(f"  (tolerance {allowed}: {because})", f"（容差 {allowed}：{because}）")
        path, expected, found, detail, got, want = difference
        self._miss(Mismatch(name + path, expected, found, source, step, detail), got, want)

    def _miss(self, error: Mismatch, got: Any, want: Any) -> None:
        self._recorder.miss(error.with_traceback(_traceback(sys._getframe(2))), got, want)


def _traceback(frame: FrameType | None) -> TracebackType | None:
    """The traceback of an error that is raised in `frame`: a test that goes on raises it elsewhere, later."""
    trace = None
    while frame is not None:
        trace = TracebackType(trace, frame, frame.f_lasti, frame.f_lineno)
        frame = frame.f_back
    return trace


class _Difference(NamedTuple):
    """Where two values part: for the message as text, for the record as they are."""

    path: str
    expected: str
    found: str
    detail: str
    got: Any
    want: Any


def _parts(path: str, got: Any, want: Any, detail: str = "") -> _Difference:
    return _Difference(path, _show(want), _show(got), detail, got, want)


def _difference(got: Any, want: Any, atol: float, rtol: float, path: str) -> _Difference | None:
    """The first place where `got` departs from `want`, or None."""
    if isinstance(want, torch.Tensor):
        return _tensor_difference(got, want, atol, rtol, path)
    if isinstance(want, Mapping):
        if not isinstance(got, Mapping):
            return _parts(path, got, want, tr("not a dict", "不是字典"))
        missing, extra = [k for k in want if k not in got], [k for k in got if k not in want]
        if missing or extra:
            detail = tr(
                f"missing keys {missing}, unexpected keys {extra}", f"缺少的键 {missing}，多出的键 {extra}"
            )
            return _Difference(path, _show(list(want)), _show(list(got)), detail, got, want)
        pairs = [(f"[{key!r}]", got[key], want[key]) for key in want]
    elif isinstance(want, list | tuple):
        if not isinstance(got, list | tuple) or len(got) != len(want):
            return _parts(path, got, want, tr("another length or type", "长度或类型不同"))
        pairs = [(f"[{i}]", g, w) for i, (g, w) in enumerate(zip(got, want, strict=True))]
    else:
        if isinstance(got, torch.Tensor) and got.numel() == 1 and isinstance(want, int | float):
            got = got.item()
        return None if _same_leaf(got, want, atol, rtol) else _parts(path, got, want)
    for key, g, w in pairs:
        if found := _difference(g, w, atol, rtol, path + key):
            return found
    return None


def _same_leaf(got: Any, want: Any, atol: float, rtol: float) -> bool:
    numbers = (int, float)
    if isinstance(want, numbers) and isinstance(got, numbers):
        if isinstance(want, bool) != isinstance(got, bool):
            return False
        if got == want or (math.isnan(got) and math.isnan(want)):
            return True
        return math.isfinite(got) and abs(got - want) <= atol + rtol * abs(want)
    return type(got) is type(want) and bool(got == want)


def _tensor_difference(
    got: Any, want: torch.Tensor, atol: float, rtol: float, path: str
) -> _Difference | None:
    if not isinstance(got, torch.Tensor):
        if want.numel() == 1 and isinstance(got, int | float):
            got = torch.full_like(want, got)
        else:
            return _parts(path, got, want, tr("not a tensor", "不是张量"))
    if got.shape != want.shape or got.dtype != want.dtype:
        kinds = f"{tuple(want.shape)} {want.dtype}", f"{tuple(got.shape)} {got.dtype}"
        return _Difference(path, *kinds, tr("another shape or dtype", "形状或类型不同"), got, want)
    got, want = got.detach().cpu(), want.detach().cpu()
    if torch.equal(got, want):
        return None
    g, w = got.to(torch.float64).flatten(), want.to(torch.float64).flatten()
    gap = (g - w).abs()
    same = (g == w) | (g.isnan() & w.isnan()) | (gap <= atol + rtol * w.abs())
    if bool(same.all()):
        return None
    wrong = (~same).nonzero().flatten()
    first = int(wrong[0])
    index = [int(i) for i in torch.unravel_index(torch.tensor(first), want.shape)] if want.dim() else []
    digits = _digits(want)
    detail = tr(
        f"first at {index}: expected {w[first]:{digits}}, got {g[first]:{digits}}; "
        f"{len(wrong)} of {want.numel()} elements differ, by at most {gap[wrong].max():.3g}",
        f"首个不同在 {index}：期望 {w[first]:{digits}}，得到 {g[first]:{digits}}；"
        f"共 {want.numel()} 个元素中有 {len(wrong)} 个不同，最大相差 {gap[wrong].max():.3g}",
    )
    return _parts(path, got, want, detail)


def _digits(tensor: torch.Tensor) -> str:
    """As many digits as the dtype tells apart."""
    return {torch.float64: ".17g", torch.float32: ".9g"}.get(tensor.dtype, ".5g")


def _show(value: Any) -> str:
    """A value for a message: numbers with the digits that matter, long tensors by their first elements."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().to(torch.float64).flatten()
        digits = _digits(value)
        listed = ", ".join(f"{x:{digits}}" for x in flat[:_MAX_LISTED].tolist())
        if value.dim() == 0:
            return listed
        more = ", …" if flat.numel() > _MAX_LISTED else ""
        shape = "" if value.dim() == 1 and not more else f"  {tuple(value.shape)}"
        return f"[{listed}{more}]{shape}"
    if isinstance(value, str):
        return value
    text = repr(value)
    return text if len(text) <= 300 else text[:297] + "…"
