"""What a lesson test saw: every observation for the report, and every failed comparison for the diagnosis.

A failed comparison becomes a small row of plain numbers (`brief`). The rows of a run are compared with those of
the known mistakes (course/fingerprints.py), so nothing in a row may depend on the machine: no paths, no addresses,
no times, no text that a student chooses.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from course.expect import Mismatch

MAX_RECORDED = 2000  # observations a test may keep; a longer trajectory keeps its beginning
PATIENCE = 4  # failed comparisons after which a test ends; the first is reported, all of them identify
MAX_NOTED = 20  # noted values of a test that identify it
_MAX_LISTED = 8  # elements of a tensor that an observation spells out
_DIGITS = 6  # significant digits of the numbers in a row


@dataclass
class Recorder:
    """What one test saw.

    `rows` are the observations (name, step, value), kept when `enabled`. `misses` are what identifies a failure:
    the comparisons that failed and what the test noted, in order. A test goes on after a failed comparison, until
    `patience` of them have failed: a trajectory tells more than its first point. `first` is the error that the
    test ends with.
    """

    enabled: bool
    rows: list[dict[str, Any]]
    patience: int = 1
    misses: list[list[Any]] = field(default_factory=list)
    failed: int = 0
    first: "Mismatch | None" = None
    after: str = ""  # how the test ended when it went on: "", "todo", or the type of the exception

    def add(self, name: str, value: Any, step: int | None) -> None:
        if self.enabled and len(self.rows) < MAX_RECORDED:
            self.rows.append({"name": name, "step": step, "value": summarize(value)})

    def note(self, name: str, value: Any, step: int | None = None) -> None:
        """Keep a value that is not compared."""
        self.add(name, value, step)
        if len(self.misses) < MAX_NOTED:
            self.misses.append([name, step, brief(value), None])

    def miss(self, error: "Mismatch", got: Any, want: Any) -> None:
        """Note a failed comparison; raise the first one when the patience is at its end."""
        self.first = self.first or error
        self.failed += 1
        self.misses.append([error.name, error.step, brief(got), gap(got, want)])
        if self.failed >= self.patience:
            raise self.first


def summarize(value: Any) -> Any:
    """A value as JSON can hold it: small tensors whole, large ones as shape, sum, norm and first elements."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().to("cpu", torch.float64).flatten()
        if flat.numel() <= _MAX_LISTED:
            return [_plain(x) for x in flat.tolist()]
        head = [_plain(x) for x in flat[:_MAX_LISTED].tolist()]
        return {
            "shape": list(value.shape),
            "sum": _plain(flat.sum().item()),
            "norm": _plain(flat.norm().item()),
            "head": head,
        }
    if isinstance(value, Mapping):
        return {str(key): summarize(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [summarize(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    return _plain(value) if isinstance(value, float) else f"{type(value).__name__}"


def brief(value: Any) -> Any:
    """A value in a few numbers: what identifies it, not what shows it.

    Tensors: dtype and shape, then all of up to 4 elements, or sum, norm and 4 elements spread over the rest.
    Containers: their type, length and keys. Strings only where they are words; other objects by their type.
    """
    if isinstance(value, torch.Tensor):
        flat = value.detach().to("cpu", torch.float64).flatten()
        kind = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        if flat.numel() <= 4:
            return [kind, *map(_rounded, flat.tolist())]
        spread = [flat[(flat.numel() - 1) * i // 3].item() for i in range(4)]
        return [kind, *map(_rounded, (flat.sum().item(), flat.norm().item(), *spread))]
    if isinstance(value, Mapping):
        return [f"dict {len(value)}", *sorted(str(k) for k in value if isinstance(k, str | int))[:12]]
    if isinstance(value, list | tuple | set):
        items = sorted(value, key=str) if isinstance(value, set) else value
        plain = [x for x in items if isinstance(x, str | int | float)][:_MAX_LISTED]
        return [f"list {len(value)}", *(_rounded(x) if isinstance(x, float) else x for x in plain)]
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return _rounded(value)
    return value[:60] if isinstance(value, str) and "/" not in value else type(value).__name__


def gap(got: Any, want: Any) -> float | str | None:
    """‖got − want‖ for tensors of one shape and for numbers; None for everything else."""
    if isinstance(got, torch.Tensor) and isinstance(want, torch.Tensor):
        if got.shape != want.shape:
            return None
        difference = got.detach().to("cpu", torch.float64) - want.detach().to("cpu", torch.float64)
        return _rounded(difference.norm().item())
    if isinstance(got, int | float) and isinstance(want, int | float):
        return _rounded(float(got) - float(want))
    return None


def _plain(number: float) -> float | str:
    """JSON has no NaN and no infinity: they become the strings "nan", "inf" and "-inf"."""
    return number if math.isfinite(number) else str(number)


def _rounded(number: float) -> float | str:
    return float(f"{number:.{_DIGITS}g}") if math.isfinite(number) else str(number)
