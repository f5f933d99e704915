"""The processes of `course watch`; see course/watch/__init__.py."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from course.errors import CourseError
from course.lang import current, tr
from course.registry import ROOT, Lesson, find_lesson
from course.trials import Forked, preload
from course.watch.run import OneRun, arguments
from course.watch.session import QUIT, Session
from course.watch.words import say

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def watch(lesson: Lesson) -> int:
    """Watch, from this lesson on, until Ctrl-C; returns exit status 0."""
    follow = _follow_with_forks if hasattr(os, "fork") else _follow_with_fresh_processes
    for number in _SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        say(tr("Watching your files. Ctrl-C ends it.", "正在监视你的文件，按 Ctrl-C 结束。"))
        run_now = False
        with tempfile.TemporaryDirectory(prefix="course-watch-", ignore_cleanup_errors=True) as scratch:
            while True:
                lesson = follow(lesson, Path(scratch), run_now)
                run_now = True
    except KeyboardInterrupt:
        say(tr("\nNo longer watching.", "\n已停止监视。"))
    return 0


def _follow_with_fresh_processes(lesson: Lesson, scratch: Path, run_now: bool) -> Lesson:
    """Watch the lesson; returns the one to go on with."""
    apart: dict[str, Any] = {"process_group": 0}
    if sys.platform == "win32":
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    environment = {**os.environ, "COURSE_LANG": current()}
    session = Session(lesson, scratch, run_now)
    try:
        while session.wait():
            command = [sys.executable, "-m", "course.watch.run", lesson.name, str(session.new_folder())]
            session.running(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, **apart)
            )
    finally:
        session.kill()
    return session.next or lesson


def _follow_with_forks(lesson: Lesson, scratch: Path, run_now: bool) -> Lesson:
    """Fork a collector and wait for it; returns the lesson to go on with."""
    session = Session(lesson, scratch, run_now)
    preload()
    answer = scratch / "next"
    answer.unlink(missing_ok=True)
    with _blocked_signals():
        collector = _fork()
        if collector is None:
            _Collector(session, answer).work()
    try:
        status = collector.wait()
    except KeyboardInterrupt:
        if collector.poll() is None:
            os.kill(collector.pid, signal.SIGTERM)
            collector.wait()
        raise
    if status == QUIT:
        raise KeyboardInterrupt
    if not answer.exists():
        raise CourseError(f"the process that watched lesson {lesson.number} ended with status {status}")
    return find_lesson(answer.read_text(encoding="utf-8"))


class _Collector:
    """A pytest plugin: collects the lesson's tests, then forks a run at each save. In a run, it steps aside."""

    def __init__(self, session: Session, answer: Path) -> None:
        self.session, self.answer = session, answer
        self.run: OneRun | None = None  # set in a run

    def work(self) -> NoReturn:
        """The whole life of a collector, or of a run that was forked from it; never returns."""
        for number in _SIGNALS:
            signal.signal(number, self._quit)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        try:
            status = int(pytest.main(arguments(self.session.lesson), plugins=[self]))
            if self.run is not None:
                self.run.finish(status)
            say(
                tr(
                    "The tests cannot be collected; see above. Save to try again.",
                    "无法收集测试，原因见上。保存后重试。",
                )
            )
            self.session.run_now = False
            self.session.wait()
            self._leave()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Collected. From here on this process only watches, and forks; a run returns, and pytest goes on in it."""
        if session.testsfailed:
            return None
        gc.collect()
        gc.freeze()  # the runs' garbage collections leave these objects, and their pages, alone
        while self.session.wait():
            folder = self.session.new_folder()
            with _blocked_signals():
                child = _fork()
                if child is None:
                    self._become_run(session, folder).loop(session)
                    return True
                os.setpgid(child.pid, child.pid)  # as the child does: whoever comes first
                self.session.running(child)
        self._leave()

    def _become_run(self, session: pytest.Session, folder: Path) -> OneRun:
        os.setpgid(0, 0)  # Ctrl-C goes to the collector, which ends this group
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # nobody answers a breakpoint() here
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.run = OneRun(self.session.lesson, folder)
        session.config.pluginmanager.register(self.run)
        if not self.run.prepare(session):
            self.run.finish(1)
        return self.run

    def _leave(self) -> NoReturn:
        following = self.session.next or self.session.lesson
        self.answer.write_text(following.name, encoding="utf-8")
        os._exit(0)

    def _quit(self, *_: Any) -> NoReturn:
        self.session.kill()
        os._exit(QUIT)


def _fork() -> Forked | None:
    """The child's handle, or None in the child."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    return Forked(pid) if pid else None


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """No signal between a fork and the moment when the child is known and has its own handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
