"""The pytest plugin of the course: options, lesson tests and their limits, TODO as an outcome, and the closing summary.

It acts on tests below `tutorial/<stage>/<lesson>/testcases/` and leaves every other test alone. Loaded by the
conftest.py at the root. Nothing here imports torch: a run that collects no lesson does not pay for it.
"""

import random
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from course import failures, lang, progress, summary
from course.errors import CourseError
from course.implementation import Implementation
from course.outcomes import DEFAULT_SEED, FAILED, PASSED, SKIPPED, TIMEOUT, TODO, TestOutcome
from course.registry import Lesson, lesson_of
from course.run import LESSON, RECORDER, RUN, Run, seed_of

DEFAULT_LIMIT = 10.0  # seconds a test may take
_PATIENCE = 8  # times the limit that a test may take while it waits for the machine

pytest_plugins = ["course.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("course", "the course")
    group.addoption(
        "--impl",
        default="tutorial",
        metavar="WHOSE",
        help="whose code to test: tutorial (default), solutions, or a folder",
    )
    group.addoption(
        "--device",
        default="all",
        choices=("cpu", "cuda", "all"),
        help="devices for the tests that have device cases (default: all)",
    )
    group.addoption(
        "--course-seed", type=int, default=DEFAULT_SEED, metavar="N", help="seed of the rng fixture"
    )
    group.addoption(
        "--report", default=None, metavar="FILE.json", help="write outcomes and observations to a file"
    )
    group.addoption(
        "--explain", action="store_true", help="where a known mistake is named, show the lines that do it"
    )
    group.addoption(
        "--lang",
        default=None,
        choices=lang.LANGUAGES,
        help="language of messages (default: COURSE_LANG, or the locale)",
    )


def pytest_configure(config: pytest.Config) -> None:
    try:
        lang.choose(config.getoption("--lang") or lang.current())
        implementation = Implementation(config.getoption("--impl"), config.invocation_params.dir)
    except CourseError as error:
        raise pytest.UsageError(str(error)) from None
    report = config.getoption("--report")
    if report and not Path(config.invocation_params.dir, report).resolve().parent.is_dir():
        raise pytest.UsageError(f"--report {report}: its folder does not exist")
    config.stash[RUN] = Run(
        implementation, config.getoption("--course-seed"), bool(report), config.getoption("--explain")
    )


# ---------------------------------------------------------------------------------------------- collection


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    run = config.stash[RUN]
    for item in items:
        lesson = _lesson_of_item(item, run)
        if lesson is not None:
            item.stash[LESSON] = lesson
            # pytest would format the source of every frame (50 ms a failure); course.failures says it better.
            item.repr_failure = _no_traceback  # type: ignore[method-assign]
    if run.lessons and "torch" in sys.modules:
        import torch

        from course import lazy_dynamo

        lazy_dynamo.install()
        torch.set_num_threads(1)  # small tensors: more threads only add noise and waiting
        terminal = config.pluginmanager.get_plugin("terminalreporter")
        if (
            terminal is not None and config.option.reportchars == "fE"
        ):  # the default; our summary says it better
            terminal.reportchars = "w"


def _no_traceback(excinfo: Any, style: Any = None) -> str:
    return ""


def _lesson_of_item(item: pytest.Item, run: Run) -> Lesson | None:
    if item.path.parent.name != "testcases":
        return None
    if item.path in run.files:
        return run.files[item.path]
    try:
        lesson = run.files[item.path] = lesson_of(item.path)
    except CourseError as error:
        raise pytest.UsageError(str(error)) from None
    if lesson is not None:
        run.lessons[lesson.name] = lesson
    return lesson


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items:
        items[0].config.stash[RUN].partial = True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames and lesson_of(metafunc.definition.path) is not None:
        asked = metafunc.config.getoption("--device")
        metafunc.parametrize("device", ["cpu", "cuda"] if asked == "all" else [asked], indirect=True)


# ----------------------------------------------------------------------------------------------- execution


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    if LESSON in item.stash:
        seed = seed_of(item)
        random.seed(seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed)
        if "torch" in sys.modules:
            _seed_torch(sys.modules["torch"], seed)
    return (yield)


def _seed_torch(torch: Any, seed: int) -> None:
    """`torch.manual_seed` without its four stack traces for devices that are not there (1 ms a test)."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """A test that went on after a failed comparison ends with it, whatever came of going on."""
    after = ""
    try:
        result = yield
    except (Exception, failures.TimeLimitExceeded, pytest.skip.Exception) as error:
        recorder = pyfuncitem.stash.get(RECORDER, None)
        if recorder is None or recorder.first is None:
            raise
        after = "" if error is recorder.first else failures.kind_of(error)
    recorder = pyfuncitem.stash.get(RECORDER, None)
    if recorder is not None and recorder.first is not None:
        recorder.after = after
        raise recorder.first
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    if LESSON not in item.stash or item.config.getoption("usepdb", False):
        return (yield)
    marker = item.get_closest_marker("limit")
    seconds = float(marker.args[0]) if marker else DEFAULT_LIMIT
    can_interrupt = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()
    if not can_interrupt:  # e.g. Windows: the test runs to its end, without a limit
        return (yield)

    began, computed = time.monotonic(), time.process_time()

    def stop(signum: int, frame: Any) -> None:
        # A busy machine is no loop without an end: a test that has hardly computed gets more time to wait.
        waited = time.monotonic() - began
        if time.process_time() - computed < seconds / 2 and waited < _PATIENCE * seconds:
            signal.setitimer(signal.ITIMER_REAL, seconds / 4)
            return
        raise failures.TimeLimitExceeded(seconds)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    lesson = item.stash.get(LESSON, None)
    if lesson is None or (report.passed and report.when != "call"):
        return report
    outcome = _describe(item, lesson, report)
    if call.excinfo is not None and report.failed:
        failures.explain(outcome, call.excinfo.value, item, item.config.stash[RUN].implementation.root)
        report.longrepr = failures.render(outcome)
    report.course_outcome = outcome
    item.config.stash[RUN].outcomes.append(outcome)
    return report


def _describe(item: pytest.Item, lesson: Lesson, report: Any) -> TestOutcome:
    names = {"passed": PASSED, "failed": FAILED, "skipped": SKIPPED}
    recorder = item.stash.get(RECORDER, None)
    doc = getattr(getattr(item, "obj", None), "__doc__", None) or ""
    return TestOutcome(
        nodeid=item.nodeid,
        lesson=lesson.name,
        file=item.path.stem,
        test=item.name,
        tasks=[task for mark in item.iter_markers("task") for task in mark.args],
        outcome=names[report.outcome],
        seconds=report.duration,
        setup=doc.strip().splitlines()[0] if doc.strip() else "",
        reason=report.longrepr[2].removeprefix("Skipped: ") if report.skipped else "",
        observations=recorder.rows if recorder else [],
        misses=recorder.misses if recorder else [],
        after=recorder.after if recorder else "",
    )


def pytest_report_teststatus(report: Any) -> tuple[str, str, Any] | None:
    outcome = getattr(report, "course_outcome", None)
    if outcome is None:
        return None
    if outcome.outcome == TODO:
        word = f"TODO {outcome.todo_task} {outcome.todo_file}:{outcome.todo_line}"
        return "todo", "T", (word, {"yellow": True})
    if outcome.outcome == TIMEOUT:
        return "failed", "F", ("TIME LIMIT", {"red": True})
    if outcome.outcome == FAILED:
        return "failed", "F", ("FAILED", {"red": True})
    return None


# ------------------------------------------------------------------------------------------------- reports


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    run = config.stash[RUN]
    if run.lessons and run.outcomes:
        summary.write(terminalreporter, run)


def pytest_sessionfinish(session: pytest.Session) -> None:
    run = session.config.stash[RUN]
    report = session.config.getoption("--report")
    if report and run.outcomes:
        summary.write_report(Path(session.config.invocation_params.dir, report), run)
    if run.implementation.is_students and not run.partial and run.outcomes:
        progress.record(list(run.lessons.values()), run.outcomes)
