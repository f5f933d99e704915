"""The watching of one lesson: when to run, when to kill, and which lesson comes after it."""

import contextlib
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Protocol

from course.lang import tr
from course.registry import Exam, Lesson, lessons
from course.verdict import prepare
from course.watch.files import POLL, Watcher
from course.watch.run import RunState
from course.watch.words import BOLD, headline, introduce, say, say_death, say_done, say_killed
from course.workspace import standing

QUIT = 130  # exit status of a process that was told to end
_GRACE = 3.0  # seconds beyond a test's own limit until its process is killed
_OTHERS = 10  # the other lessons' files are looked at every so many polls


class Child(Protocol):
    """What is used of a run's process, forked or spawned."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...


class Session:
    """Watches one lesson's files, and its run while there is one."""

    def __init__(self, lesson: Lesson, scratch: Path, run_now: bool) -> None:
        """`scratch` holds a folder for each run; without `run_now` a lesson that is not begun waits for a save."""
        self.lesson, self.scratch = lesson, scratch
        self.next: Lesson | None = None  # set when this session is over
        self.mine = Watcher(
            {lesson.folder, lesson.testcases, *(path.parent for path in lesson.student_files())}
        )
        # The exam is about every lesson's files, so it is never left for one of them.
        everything = [] if isinstance(lesson, Exam) else lessons()
        self.owners = {one.folder: one for one in everything if one.folder != lesson.folder}
        self.others = Watcher(self.owners)
        # Only now that no save can be missed.
        self.run_now = run_now or standing(lesson).started
        if not self.run_now:
            introduce(lesson)
        self.child: Child | None = None
        self.folder = scratch  # of the run
        self.said = RunState()  # what the run said last,
        self.said_at = 0.0  # and when that was new

    def wait(self) -> bool:
        """Block until a run is wanted (True) or the session is over (False; `next` is set)."""
        polls, parent = 0, os.getppid()
        while self.next is None:
            if self.run_now:
                self.run_now = False
                return True
            time.sleep(POLL)
            polls += 1
            if self.child is not None:
                self._look_after(self.child)
            if changed := self.mine.saved():
                self._react(changed)
            elif polls % _OTHERS == 0:
                if changed := self.others.saved():
                    self._leave_for(changed)
                if os.getppid() != parent:  # whoever started this has been killed
                    self.kill()
                    os._exit(QUIT)
        return False

    def new_folder(self) -> Path:
        """An empty folder for the next run."""
        self.folder = Path(tempfile.mkdtemp(dir=self.scratch))
        return self.folder

    def running(self, child: Child) -> None:
        """The run that was wanted has been started."""
        self.child, self.said, self.said_at = child, RunState(), time.monotonic()

    def kill(self) -> None:
        """End the run, with everything that it has started. May be interrupted by itself (a signal)."""
        child = self.child
        if child is None:
            return
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing of the group is left
                os.killpg(child.pid, signal.SIGKILL)
        elif child.poll() is None:
            os.kill(child.pid, signal.SIGTERM)
        child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.child = None

    def _react(self, changed: set[Path]) -> None:
        """To a save in this lesson: a new run, or with other tests a new session."""
        if self.child is not None:
            self.kill()
            say(tr("\nSaved again: starting over.", "\n又保存了：重新开始。"))
        say(headline(self.lesson, changed), BOLD)
        if any(path.parent == self.lesson.testcases or path.suffix == ".toml" for path in changed):
            self.next = self.lesson
        else:
            self.run_now = True

    def _leave_for(self, changed: set[Path]) -> None:
        """To a save in another lesson: go there."""
        self.kill()
        self.next = self.owners[min(changed).parent]
        say(headline(self.next, {path for path in changed if path.parent == self.next.folder}), BOLD)

    def _look_after(self, child: Child) -> None:
        """Has the run ended, or died, or does a test take too long?"""
        exit_status, state = child.poll(), RunState.read(self.folder)
        if state.ended:
            if hasattr(os, "fork"):
                learn(self.folder)
                prepare(self.lesson)
            self.kill()
            if state.passed:
                say_done(self.lesson)
        elif exit_status is not None:
            self.kill()
            say_death(exit_status, state.running)
        elif state != self.said:
            self.said, self.said_at = state, time.monotonic()
        elif time.monotonic() - self.said_at > state.limit + _GRACE:
            self.kill()
            say_killed(state.limit, state.running)


def learn(folder: Path) -> None:
    """Import here what the run had to import, so that the next one finds it done (0.7 s in lesson 05)."""
    for name in (folder / "modules").read_text(encoding="utf-8").split():
        if name.partition(".")[0] in ("torch", "numpy", "course") and name not in sys.modules:
            with contextlib.suppress(ImportError):  # made up while running, as torch.ops.* are
                importlib.import_module(name)
