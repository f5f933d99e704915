"""Two processes that share the tests of one run: on two cores a verdict comes in little more than half the time.

The run forks a helper when the order of the tests is known. Both take the number of the next test from one pipe, so
neither waits for the other; the helper sends its reports back, and the run shows them as if they were its own.
"""

import contextlib
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NoReturn

import pytest

from course.cores import cores
from course.run import run_of

_WORTH_IT = 16  # tests; fewer are over before a process is forked
_NUMBER = 2  # bytes of a ticket


def worth_it(tests: int) -> bool:
    """Are there as many tests as that, and a core for each of two processes?"""
    return tests >= _WORTH_IT and cores() > 1


class Tickets:
    """The numbers 0 … count − 1 in a pipe, each for whoever comes first."""

    def __init__(self, count: int) -> None:
        assert count * _NUMBER <= 16384, "a pipe holds at least 16 KiB on the systems that have fork"
        self._source, target = os.pipe()
        os.write(target, b"".join(number.to_bytes(_NUMBER, "big") for number in range(count)))
        os.close(target)

    def __iter__(self) -> Iterator[int]:
        """The numbers taken here. None is taken ahead, so that no test waits while the other process is idle."""
        while ticket := os.read(self._source, _NUMBER):
            yield int.from_bytes(ticket, "big")


def run_one(item: pytest.Item) -> None:
    """Run a test; what came before or comes after it may be in the other process, so nothing is kept for that."""
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)


class Helper:
    """The forked process. As a plugin of pytest it collects what the run has to be told."""

    def __init__(self, to_run: Connection) -> None:
        self.to_run = to_run
        self.reports: list[Any] = []
        self.warnings: list[tuple[Any, ...]] = []

    def work(self, items: list[pytest.Item], tickets: Tickets) -> NoReturn:
        """Take tests until there are none; never returns."""
        known = set(sys.modules)
        self.warnings.clear()  # those of the collection, which pytest tells every new plugin
        for number in tickets:
            self.to_run.send((number, None, None))  # it begins
            run_one(items[number])
            self.to_run.send((number, self.reports, self.warnings))
            self.reports, self.warnings = [], []
        self.to_run.send(set(sys.modules) - known)
        os._exit(0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.reports.append(report)

    def pytest_warning_recorded(self, warning_message: Any, when: str, nodeid: str, location: Any) -> None:
        """Its category may be a class of the student's, which no other process knows."""
        try:
            pickle.dumps(warning_message)
        except Exception:  # whatever pickling a stranger's object raises; the text is what is shown
            text = f"{warning_message.category.__name__}: {warning_message.message}"
            warning_message = warnings.WarningMessage(
                UserWarning(text), UserWarning, warning_message.filename, warning_message.lineno
            )
        self.warnings.append((warning_message, when, nodeid, location))


class Pair:
    """The run's side: its own tests, and what the helper says of the others."""

    def __init__(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        self.session, self.items = session, items
        self.modules: set[str] = set()  # that the helper needed
        self.theirs: int | None = None  # the test that the helper is at
        self._over = False

    def fork(self, folder: Path, run_plugin: object) -> None:
        """Start the helper; `run_plugin` has no business in it."""
        self.tickets = Tickets(len(self.items))
        self.from_helper, to_run = Pipe(duplex=False)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                folder.mkdir()
                os.environ["PYTEST_DEBUG_TEMPROOT"] = str(folder)
                self.from_helper.close()
                plugins = self.session.config.pluginmanager
                plugins.unregister(run_plugin)
                plugins.unregister(name="terminalreporter")
                helper = Helper(to_run)
                plugins.register(helper)
                helper.work(self.items, self.tickets)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(1)
        to_run.close()

    def mine(self) -> Iterator[pytest.Item]:
        """The tests that fall to this process; between them, what the helper has said is shown."""
        for number in self.tickets:
            yield self.items[number]
            while not self._over and self.from_helper.poll():
                self._hear()

    def theirs_to_come(self) -> Iterator[pytest.Item]:
        """Wait for the helper's end; yields each test of its that is being waited for."""
        while not self._over:
            if self.theirs is not None:
                yield self.items[self.theirs]
            self._hear()
        os.waitpid(self.pid, 0)

    def kill(self) -> None:
        """End the helper, wherever it is."""
        if not self._over:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _hear(self) -> None:
        """Take one message: a test begins, a test has ended, or all have (and which modules they needed)."""
        try:
            message = self.from_helper.recv()
        except EOFError:
            self._die_as_it_did()
        if isinstance(message, set):
            self.modules, self._over, self.theirs = message, True, None
            return
        number, reports, recorded = message
        self.theirs = number if reports is None else None
        if reports is not None:
            self._replay(self.items[number], reports, recorded)

    def _replay(self, item: pytest.Item, reports: list[Any], recorded: list[tuple[Any, ...]]) -> None:
        hook = item.config.hook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for warning_message, when, nodeid, location in recorded:
            arguments = {"when": when, "nodeid": nodeid, "location": location}
            hook.pytest_warning_recorded.call_historic(
                kwargs={"warning_message": warning_message, **arguments}
            )
        for report in reports:
            if hasattr(report, "course_outcome"):
                run_of(item.config).outcomes.append(report.course_outcome)
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def _die_as_it_did(self) -> NoReturn:
        """The student's code has ended the helper: so it would have ended this process."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        sys.stdout.flush()
        if status < 0:
            with contextlib.suppress(OSError):  # nobody can handle SIGKILL, so it needs no default
                signal.signal(-status, signal.SIG_DFL)
            os.kill(os.getpid(), -status)
        os._exit(status)
