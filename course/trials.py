"""Run one lesson's tests on many implementations, each in a process forked after the imports and the collection.

A cold pytest run takes three seconds, nearly all of it imports. The gates need hundreds of runs. So the tests of
a lesson are collected once, and then a child is forked for each run: it is pointed at its implementation, runs
its tests and writes its report. A run costs what its tests cost, and a crash, an endless loop or a leak in the
code under test stays in the child. Where there is no fork (Windows), a fresh process does it.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from course.cores import cores
from course.outcomes import TestOutcome
from course.registry import ROOT, Lesson

TRIAL_LIMIT = 300.0  # seconds until a whole run is given up; each test has its own limit
_ENDED_BY_ERROR = 70  # exit status of a child that did not get as far as its report


@dataclass(frozen=True)
class Trial:
    """What to run: the lesson's tests (or only the functions named) on the code in `impl`."""

    key: str
    lesson: Lesson
    impl: Path
    tests: frozenset[str] | None = None
    seed: int | None = None


@dataclass
class TrialResult:
    """The outcomes, and what was printed, which tells why when there are none."""

    trial: Trial
    outcomes: list[TestOutcome] = field(default_factory=list)
    output: str = ""
    seconds: float = 0.0

    def failed_functions(self, *kinds: str) -> set[str]:
        """Names of the test functions with at least one case of the given outcomes."""
        return {o.function for o in self.outcomes if o.outcome in kinds}


def run_trials(trials: list[Trial], jobs: int | None = None) -> Iterator[TrialResult]:
    """Run all trials, `jobs` at a time (default: one for each core); yields the results of a lesson together."""
    count = jobs or cores()
    with tempfile.TemporaryDirectory(prefix="course-trials-") as scratch:
        if not hasattr(os, "fork"):
            yield from _run_all(trials, count, _spawn, Path(scratch))
            return
        preload()
        for _, group in itertools.groupby(trials, key=lambda trial: trial.lesson.name):
            session = _Session(list(group), count, Path(scratch))
            arguments = _arguments(session.trials[0].lesson, Path(scratch) / "never-written.json")
            with (
                open(os.devnull, "w") as silence,
                contextlib.redirect_stdout(silence),
                contextlib.redirect_stderr(silence),
            ):
                pytest.main([*arguments, "--impl", "solutions"], plugins=[session])
            yield from session.results or [
                TrialResult(trial, output="the tests could not be collected: run pytest on them")
                for trial in session.trials
            ]


class _Session:
    """A pytest plugin: when a lesson's tests are collected, run the trials in forked children, and nothing here."""

    def __init__(self, trials: list[Trial], jobs: int, scratch: Path) -> None:
        self.trials, self.jobs, self.scratch = trials, jobs, scratch
        self.results: list[TrialResult] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:  # errors while collecting
            return True

        def start(trial: Trial, folder: Path) -> "Forked":
            return _fork(lambda: _run_items(session, trial, folder), folder / "log.txt")

        self.results = list(_run_all(self.trials, self.jobs, start, self.scratch))
        return True


def _run_items(session: pytest.Session, trial: Trial, folder: Path) -> None:
    """In the child: run the collected tests on the trial's implementation, and write the report."""
    from course import summary
    from course.implementation import Implementation
    from course.run import run_of

    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(folder)  # where tmp_path puts its folders
    run = run_of(session.config)
    run.implementation = Implementation(str(trial.impl))
    run.seed = trial.seed if trial.seed is not None else run.seed
    items = [i for i in session.items if trial.tests is None or i.name.partition("[")[0] in trial.tests]
    for item, following in itertools.zip_longest(items, items[1:]):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    summary.write_report(folder / "report.json", run)


class _Child(Protocol):
    """What is used of a child, forked or spawned."""

    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def wait(self) -> int: ...


def _run_all(
    trials: list[Trial], jobs: int, start: Callable[[Trial, Path], _Child], scratch: Path
) -> Iterator[TrialResult]:
    """Start the trials, `jobs` at a time, and yield their results as they end."""
    waiting = list(reversed(trials))
    running: list[tuple[Trial, Path, float, _Child]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                trial, folder = waiting.pop(), Path(tempfile.mkdtemp(dir=scratch))
                running.append((trial, folder, time.monotonic(), start(trial, folder)))
            ended = [one for one in running if _has_ended(one[3], one[2])]
            for one in ended:
                running.remove(one)
                yield _read_result(one[0], one[1], time.monotonic() - one[2])
            if not ended:
                time.sleep(0.005)
    finally:
        for _, _, _, child in running:
            child.kill()
            child.wait()


def _has_ended(child: _Child, began: float) -> bool:
    if child.poll() is None and time.monotonic() - began > TRIAL_LIMIT:
        child.kill()
        child.wait()
    return child.poll() is not None


def _read_result(trial: Trial, folder: Path, seconds: float) -> TrialResult:
    result = TrialResult(trial, seconds=seconds)
    log, report = folder / "log.txt", folder / "report.json"
    if log.exists():
        result.output = log.read_text(encoding="utf-8", errors="replace")
    if report.exists():
        rows = json.loads(report.read_text(encoding="utf-8"))["tests"]
        result.outcomes = [TestOutcome(**row) for row in rows]
    return result


def _arguments(lesson: Lesson, report: Path) -> list[str]:
    # --capture=sys: files would be shared between the forked children.
    plain = ["-q", "-p", "no:cacheprovider", "--capture=sys", "--device", "cpu", "--lang", "en"]
    return [*map(str, lesson.test_files()), "--rootdir", str(ROOT), *plain, "--report", str(report)]


def preload() -> None:
    """Import what every child needs. No backward pass here: autograd's threads do not survive a fork."""
    import numpy  # noqa: F401
    import torch

    from course import lazy_dynamo

    torch.set_num_threads(1)
    lazy_dynamo.install()
    # The first optimizer sets up a good deal, once; better here than in each child.
    torch.optim.SGD([torch.zeros(1)], lr=0.0)


class Forked:
    """A forked child, with the methods of subprocess.Popen that are used here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status


def _fork(body: Callable[[], None], log: Path) -> Forked:
    """Run `body` in a forked child whose output goes to `log`; the child never returns."""
    pid = os.fork()
    if pid:
        return Forked(pid)
    status = _ENDED_BY_ERROR
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        body()
        status = 0
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _spawn(trial: Trial, folder: Path) -> "subprocess.Popen[bytes]":
    """Run the trial in a fresh process."""
    command = [sys.executable, "-m", "pytest", *_arguments(trial.lesson, folder / "report.json")]
    command += ["--impl", str(trial.impl), "--basetemp", str(folder / "tmp")]
    if trial.seed is not None:
        command += ["--course-seed", str(trial.seed)]
    if trial.tests is not None:
        command += ["-k", " or ".join(sorted(trial.tests))]
    with open(folder / "log.txt", "wb") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
