"""One run of `course watch`: a pytest plugin inside the process that runs the student's code.

It checks the syntax first, runs the tests of the current task before the others, and keeps a file that says which
test is running, so that the watching process knows what a crash or an endless loop was in. Where processes cannot
be forked, this module is the program of a fresh one: `python -m course.watch.run LESSON FOLDER`.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import pytest

from course import lang, progress
from course.lang import tr
from course.outcomes import FAILED, PASSED, SKIPPED, TIMEOUT, TODO, by_task
from course.pytest_plugin import DEFAULT_LIMIT
from course.registry import ROOT, Lesson, Task, find_lesson
from course.run import run_of
from course.watch.pair import Pair, run_one, worth_it

_SLOW = 0.5  # seconds of tests for which one waits without a first word
_LONG = 0.03  # seconds of a test that had better not be the last
_LONGEST_NAME, _RECORD = 200, 1000  # characters of a test's name; bytes of the state's file


@dataclass(frozen=True)
class RunState:
    """What the file of a run says: the test that is running and its limit, or how the run ended."""

    running: str = ""
    limit: float = 60.0  # before the first test: imports
    ended: bool = False
    passed: bool = False  # every test of the lesson ran and passed

    def write(self, file: BinaryIO) -> None:
        """In place and in one piece, because it happens for every test."""
        text = f"{self.running[:_LONGEST_NAME]}\n{self.limit}\n{self.ended:d}\n{self.passed:d}\n"
        file.seek(0)
        file.write(text.encode().ljust(_RECORD))

    @staticmethod
    def read(folder: Path) -> "RunState":
        """The state as it is now; the one before the first test where there is no file yet."""
        try:
            lines = (folder / "state").read_text(encoding="utf-8").splitlines()
            return RunState(lines[0], float(lines[1]), lines[2] == "1", lines[3] == "1")
        except (FileNotFoundError, IndexError):
            return RunState()


class OneRun:
    """The plugin. `prepare` comes first, `finish` last; the hooks in between are pytest's."""

    def __init__(self, lesson: Lesson, folder: Path) -> None:
        self.lesson, self.folder = lesson, folder
        self.before = by_task(lesson, progress.recall(lesson)[0])
        # the first task that did not pass when the lesson was last tested
        self.task = next((result.task for result in self.before if result.state != PASSED), None)
        self.modules = set(sys.modules)
        self.state = open(folder / "state", "wb", buffering=0)  # noqa: SIM115  (open until the process ends)
        self.session: Any = None
        self.first_part: set[str] = (
            set()
        )  # tests of the current task, where a first word is wanted after them
        self.order: dict[str, int] = {}  # of the tests in the report
        self.pair: Pair | None = None

    def prepare(self, session: pytest.Session) -> bool:
        """Order the tests; False when the student's files cannot even be parsed (and then it has said so)."""
        self.session = session
        terminal = _terminal(session.config)
        terminal._session_start = type(terminal._session_start)()  # the time shown is that of this run
        # A second save within the same second, of the same size, would meet the first one's byte code.
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(self.folder)  # tmp_path goes when the run goes
        problems = syntax_problems(self.lesson)
        for line in problems:
            terminal.write_line(line, red=True)
        if problems:
            terminal.write_line(
                tr("No test was run. Save again when this is fixed.", "没有运行任何测试。改好后再保存即可。")
            )
            return False
        self._order(session.items)
        return True

    def _order(self, items: list[pytest.Item]) -> None:
        """Current task first; cases on a GPU, which each new process has to start up, last."""
        task = self.task
        seconds = {o.nodeid: o.seconds for result in self.before for o in result.outcomes}

        def place(item: pytest.Item) -> tuple[bool, bool]:
            return _on_gpu(item), task is None or not _is_of(item, task)

        items.sort(key=place)
        self.order = {item.nodeid: number for number, item in enumerate(items)}
        # What takes long begins early, so that two processes end together.
        items.sort(key=lambda item: (*place(item), seconds.get(item.nodeid, 0.0) < _LONG))
        first = {item.nodeid for item in items if place(item) == (False, False)}
        if first and sum(seconds.values()) - sum(seconds.get(nodeid, 0.0) for nodeid in first) > _SLOW:
            self.first_part = first

    def loop(self, session: pytest.Session) -> None:
        """Run the tests, two at a time where that is worth a second process. (Fresh processes have pytest's loop.)"""
        shared = [item for item in session.items if not _on_gpu(item)]
        if worth_it(len(shared)):
            self.pair = Pair(session, shared)
            self.pair.fork(self.folder / "helper", self)
            for item in self.pair.mine():
                self._test(session, item)
            for item in self.pair.theirs_to_come():
                self._write_state(item)
                self._stop_if_wanted(session)
            self._stop_if_wanted(session)
        for item in session.items:
            if self.pair is None or _on_gpu(item):
                self._test(session, item)

    def _test(self, session: pytest.Session, item: pytest.Item) -> None:
        run_one(item)
        self._stop_if_wanted(session)

    def _stop_if_wanted(self, session: pytest.Session) -> None:
        if session.shouldstop:
            if self.pair is not None:
                self.pair.kill()
            raise session.Interrupted(session.shouldstop)

    # ------------------------------------------------------------------------------------- pytest's hooks

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        self._write_state(item)

    def _write_state(self, item: pytest.Item) -> None:
        marker = item.get_closest_marker("limit")
        RunState(item.name, float(marker.args[0]) if marker else DEFAULT_LIMIT).write(self.state)

    def pytest_runtest_logreport(self, report: Any) -> None:
        outcome = getattr(report, "course_outcome", None)
        if outcome is not None and outcome.outcome == TIMEOUT:  # the others would wait just as long
            run_of(self.session.config).partial = True
            self.session.shouldstop = tr(
                f"{outcome.test} did not end in time; the tests after it were not run",
                f"{outcome.test} 超时；之后的测试没有运行",
            )

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if nodeid not in self.first_part:
            return
        now = [o for o in run_of(self.session.config).outcomes if o.nodeid in self.first_part]
        if {o.nodeid for o in now} != self.first_part:
            return
        ran = [o for o in now if o.outcome != SKIPPED]
        bad = sum(o.outcome in (FAILED, TIMEOUT) for o in ran)
        todo = sum(o.outcome == TODO for o in ran)
        counts = tr(
            f"{len(ran) - bad - todo} passed, {bad} failed, {todo} todo; the rest of the lesson follows",
            f"{len(ran) - bad - todo} 个通过，{bad} 个失败，{todo} 个待写；接着运行本课其余测试",
        )
        terminal = _terminal(self.session.config)
        terminal.line("")
        terminal.write_line(f"{tr('task', '任务')} {self.task.id if self.task else ''}: {counts}", bold=True)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        if run_of(config).partial:
            return
        done = {result.task.id for result in self.before if result.state == PASSED}
        now = [r.task for r in by_task(self.lesson, run_of(config).outcomes) if r.state == PASSED]
        if new := [task for task in now if task.id not in done]:
            ids, more = ", ".join(task.id for task in new), sum(task.points for task in new)
            text = tr(f"Done now: {ids}, {more} points more.", f"新完成：{ids}，加 {more} 分。")
            terminalreporter.write_line(f"  {text}", green=True, bold=True)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, exitstatus: int) -> Iterator[None]:
        """The report is printed and the progress kept: what pytest would tidy up now ends with the process."""
        if self.session is not None:  # whoever ran them, the tests are reported in their order
            run_of(self.session.config).outcomes.sort(key=lambda outcome: self.order[outcome.nodeid])
            for reports in _terminal(self.session.config).stats.values():
                reports.sort(key=lambda report: self.order.get(getattr(report, "nodeid", ""), 0))
        yield
        self.finish(int(exitstatus))

    def finish(self, status: int) -> NoReturn:
        """Tell how it ended and which modules the tests needed, and leave without waiting for anything."""
        partial = self.session is None or run_of(self.session.config).partial
        new = set(sys.modules) - self.modules | (self.pair.modules if self.pair is not None else set())
        (self.folder / "modules").write_text("\n".join(sorted(new)), encoding="utf-8")
        RunState(ended=True, passed=status == 0 and not partial).write(self.state)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def syntax_problems(lesson: Lesson) -> list[str]:
    """For each of the student's files that cannot be parsed, file:line, the message, and the line itself."""
    lines = []
    for path in lesson.student_files():
        if path.name == "run.py":  # the demonstration; no test imports it
            continue
        name = path.relative_to(ROOT)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        except SyntaxError as error:
            shown = traceback.TracebackException(type(error), error, None).format_exception_only()
            place = f"{name}:{error.lineno}" if error.lineno else str(name)  # a null byte has no line
            lines.append(f"{place}: {type(error).__name__}: {error.msg}")
            lines += [line.rstrip("\n") for line in list(shown)[1:-1]]
        except (
            ValueError,
            RecursionError,
            MemoryError,
        ) as error:  # before 3.12, a null byte; nesting without end
            lines.append(f"{name}: {type(error).__name__}: {error}")
    return lines


def arguments(lesson: Lesson) -> list[str]:
    """pytest's arguments. --capture=sys: files would be shared between forked processes."""
    plain = ["-q", "--no-header", "-p", "no:cacheprovider", "--capture=sys", "--lang", lang.current()]
    # The logging plugin attaches itself to every logger of torch three times a test, a fifth of all the time.
    plain += ["-p", "no:logging"]
    # course.pytest_plugin is imported already, and has no assert to rewrite.
    quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return [*map(str, lesson.test_files()), "--rootdir", str(ROOT), *plain, *quiet]


def _is_of(item: pytest.Item, task: Task) -> bool:
    return any(task.id in mark.args for mark in item.iter_markers("task"))


def _on_gpu(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    return callspec is not None and callspec.params.get("device") == "cuda"


def _terminal(config: pytest.Config) -> Any:
    return config.pluginmanager.get_plugin("terminalreporter")


class _Fresh:
    """Where there is no fork: the run begins when this process has collected the tests."""

    def __init__(self, run: OneRun) -> None:
        self.run = run

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        if not session.testsfailed and not self.run.prepare(session):
            self.run.finish(1)


def main() -> NoReturn:
    run = OneRun(find_lesson(sys.argv[1]), Path(sys.argv[2]))
    run.finish(int(pytest.main(arguments(run.lesson), plugins=[run, _Fresh(run)])))


if __name__ == "__main__":
    main()
