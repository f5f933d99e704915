"""SIGTERM and SIGINT (Ctrl-C) as a request: the training finishes its micro-step, saves, and leaves.

Used by trainer.py: ``with StopSignals() as stop: …; stop.leave_if_asked()`` between two micro-steps.

The handler only sets a flag: saving inside a handler would save a state between two operations. A second signal
finds the system's own handlers and ends the process at once, wherever it is: what is on disk is whole anyway.

Several processes leave together, or those that stay would wait for the one that left: before a window, or before a
validation, they tell each other whether anybody was asked to.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from training.distributed import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequested(Exception):
    """Raised between two micro-steps (of several processes: two windows), after a signal; `signum` is its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignals:
    """Inside the with-block the first SIGTERM or SIGINT sets `signum`, and nothing else happens.

    Outside of a main thread no handler can be set: there the block changes nothing.

    Args:
        ranks: the processes of the training; None: this one alone.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = Ranks() if ranks is None else ranks
        self.signum: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self.signum = None
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._request) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def leave_if_asked(self) -> None:
        """Raise StopRequested if a signal came; one of several goes on. Call it where the state may be saved."""
        if self.signum is not None and self.ranks.world_size == 1:
            raise StopRequested(self.signum)

    def leave_together(self) -> None:
        """Raise StopRequested in all processes if a signal came to one. Collective."""
        asked = self.ranks.sum(*(int(self.signum == number) for number in SIGNALS))
        for number, times in zip(SIGNALS, asked, strict=True):
            if times:
                raise StopRequested(number)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
