"""The pytest plugin of the course: fixtures for lesson tests, TODO as an outcome, and the closing summary.

It acts on tests below `tutorial/<stage>/<lesson>/testcases/` and leaves every other test alone. Loaded by the
conftest.py at the root. Nothing here imports torch: a run that collects no lesson does not pay for it.
"""

import random
import signal
import sys
import threading
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from course import failures, lang, progress, summary
from course.errors import CourseError
from course.implementation import Implementation, LessonCode, Stack
from course.outcomes import FAILED, PASSED, SKIPPED, TIMEOUT, TODO, TestOutcome
from course.registry import Lesson, lesson_of

DEFAULT_LIMIT = 10.0  # seconds a test may take
DEFAULT_SEED = 20240229

_LESSON = pytest.StashKey[Lesson]()
_RECORDER = pytest.StashKey[Any]()
_RUN = pytest.StashKey["Run"]()


class Run:
    """One pytest run: whose code, which outcomes."""

    def __init__(self, implementation: Implementation, seed: int, records: bool) -> None:
        self.implementation = implementation
        self.seed = seed
        self.records = records
        self.lessons: dict[str, Lesson] = {}
        self.files: dict[Path, Lesson | None] = {}  # which lesson a test file belongs to
        self.outcomes: list[TestOutcome] = []
        self.partial = False  # some tests were deselected, so tasks cannot be judged for good


def run_of(config: pytest.Config) -> Run:
    """The run that a pytest session records into."""
    return config.stash[_RUN]


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
    config.stash[_RUN] = Run(implementation, config.getoption("--course-seed"), records=bool(report))


# ---------------------------------------------------------------------------------------------- collection


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    run = config.stash[_RUN]
    for item in items:
        lesson = _lesson_of_item(item, run)
        if lesson is not None:
            item.stash[_LESSON] = lesson
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
        items[0].config.stash[_RUN].partial = True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames and lesson_of(metafunc.definition.path) is not None:
        asked = metafunc.config.getoption("--device")
        metafunc.parametrize("device", ["cpu", "cuda"] if asked == "all" else [asked], indirect=True)


# ------------------------------------------------------------------------------------------------ fixtures


@pytest.fixture
def lesson(request: pytest.FixtureRequest) -> LessonCode:
    """The implementation under test: `lesson.optimizer` is its optimizer.py."""
    item_lesson = request.node.stash.get(_LESSON, None)
    if item_lesson is None:
        raise CourseError("the `lesson` fixture works only below tutorial/<stage>/<lesson>/testcases/")
    return request.config.stash[_RUN].implementation.lesson(item_lesson)


@pytest.fixture
def stack(request: pytest.FixtureRequest) -> Stack:
    """For the exam: all lessons of the implementation under test, `stack.lesson06.gradients` and so on."""
    return Stack(request.config.stash[_RUN].implementation)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> Any:
    """A torch.Generator seeded by `--course-seed` and the test's name."""
    import torch

    return torch.Generator().manual_seed(_seed(request.node))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Any:
    """A torch.device; the cuda case skips where there is none."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return torch.device(request.param)


@pytest.fixture
def expect(request: pytest.FixtureRequest) -> Any:
    """Comparisons that explain themselves; see course/expect.py."""
    from course.expect import Expect

    return Expect(_recorder(request.node))


@pytest.fixture
def observe(request: pytest.FixtureRequest) -> Any:
    """observe(name, value, step=None): record a number for the report without comparing it."""
    recorder = _recorder(request.node)

    def record(name: str, value: Any, step: int | None = None) -> None:
        recorder.add(name, value, step)

    return record


def _recorder(item: pytest.Item) -> Any:
    from course.expect import Recorder

    if _RECORDER not in item.stash:
        item.stash[_RECORDER] = Recorder(item.config.stash[_RUN].records, [])
    return item.stash[_RECORDER]


def _seed(item: pytest.Item) -> int:
    return zlib.crc32(f"{item.config.stash[_RUN].seed}:{item.name}".encode())


# ----------------------------------------------------------------------------------------------- execution


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    if _LESSON in item.stash:
        seed = _seed(item)
        random.seed(seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed)
        if "torch" in sys.modules:
            sys.modules["torch"].manual_seed(seed)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    if _LESSON not in item.stash or item.config.getoption("usepdb", False):
        return (yield)
    marker = item.get_closest_marker("limit")
    seconds = float(marker.args[0]) if marker else DEFAULT_LIMIT
    can_interrupt = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()
    if not can_interrupt:  # e.g. Windows: the test runs to its end, without a limit
        return (yield)

    def stop(signum: int, frame: Any) -> None:
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
    lesson = item.stash.get(_LESSON, None)
    if lesson is None or (report.passed and report.when != "call"):
        return report
    outcome = _describe(item, lesson, report)
    if call.excinfo is not None and report.failed:
        failures.explain(outcome, call.excinfo.value, item, item.config.stash[_RUN].implementation.root)
        report.longrepr = failures.render(outcome)
    report.course_outcome = outcome
    item.config.stash[_RUN].outcomes.append(outcome)
    return report


def _describe(item: pytest.Item, lesson: Lesson, report: Any) -> TestOutcome:
    names = {"passed": PASSED, "failed": FAILED, "skipped": SKIPPED}
    recorder = item.stash.get(_RECORDER, None)
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
    run = config.stash[_RUN]
    if run.lessons and run.outcomes:
        summary.write(terminalreporter, run)


def pytest_sessionfinish(session: pytest.Session) -> None:
    run = session.config.stash[_RUN]
    report = session.config.getoption("--report")
    if report and run.outcomes:
        summary.write_report(Path(session.config.invocation_params.dir, report), run)
    if run.implementation.is_students and not run.partial and run.outcomes:
        progress.record(list(run.lessons.values()), run.outcomes)
