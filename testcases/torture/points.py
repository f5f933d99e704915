"""The instants at which the training program can be killed: it counts them, and at the armed one it is gone.

The program calls `points.hit("…")` where it does something of note. Inside `points.inside_a_save()` every write
to a file, every fsync and every rename is such an instant, too; a write is two: nothing of it, and one half.
"""

import builtins
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Points:
    """Args:
    armed: the number of the instant at which to die, counted from 0; None: never.
    """

    def __init__(self, armed: int | None = None) -> None:
        self.armed = armed
        self.kinds: list[str] = []  # what has happened so far
        self.acknowledged: list[int] = []  # with each: micro-steps that a finished save holds
        self.saved = 0

    def hit(self, kind: str, last_words: Callable[[], object] = lambda: None) -> None:
        if self.armed == len(self.kinds):
            last_words()
            os.kill(os.getpid(), signal.SIGKILL)  # no handler, no finally, no flush: as the kernel kills
        self.kinds.append(kind)
        self.acknowledged.append(self.saved)

    @contextmanager
    def inside_a_save(self) -> Iterator[None]:
        names = {
            "write": "write",
            "fsync": "fsync",
            "fdatasync": "fsync",
            "replace": "rename",
            "rename": "rename",
        }
        real = {name: getattr(os, name) for name in names if hasattr(os, name)}
        real_open = builtins.open
        for name, function in real.items():
            setattr(os, name, self._guarded(names[name], function))
        builtins.open = io.open = self._opening(real_open)  # type: ignore[assignment]
        try:
            yield
        finally:
            builtins.open = io.open = real_open
            for name, function in real.items():
                setattr(os, name, function)

    def _guarded(self, kind: str, function: Callable) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            self.hit(f"save: {kind}")
            return function(*args, **options)

        return call

    def _opening(self, function: Callable) -> Callable:
        def call(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            opened = function(file, mode, *args, **options)
            return _File(opened, self) if set(mode) & set("wax+") else opened

        return call


class _File:
    """A file that reports its writes."""

    def __init__(self, file: Any, points: Points) -> None:
        self._file, self._points = file, points

    def write(self, data: Any) -> int:
        def half() -> None:
            self._file.write(
                data[: len(data) // 2] if isinstance(data, str) else bytes(data)[: len(data) // 2]
            )
            self._file.flush()

        self._points.hit("save: write")
        self._points.hit("save: torn write", half)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
