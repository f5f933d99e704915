"""What `course watch` says between two reports."""

import os
import signal
import sys
import time
from pathlib import Path

from course.lang import tr
from course.outcomes import PASSED
from course.registry import ROOT, Exam, Lesson, exam, lessons
from course.workspace import standing

BOLD, RED, GREEN = "1", "31", "1;32"


def say(text: str, style: str = "") -> None:
    """Print at once; styled only on a terminal."""
    styled = style and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(f"\033[{style}m{text}\033[0m" if styled else text, flush=True)


def headline(lesson: Lesson, changed: set[Path]) -> str:
    """When, which files, which lesson."""
    gone = tr(" (deleted)", "（已删除）")
    names = ", ".join(sorted(path.name + ("" if path.exists() else gone) for path in changed))
    return f"\n── {time.strftime('%H:%M:%S')} · {names} · {lesson.name} · {lesson.title}"


def introduce(lesson: Lesson) -> None:
    """Where a lesson begins, or goes on."""
    now = standing(lesson)
    task = next((result.task for result in now.results if result.state != PASSED), lesson.tasks[0])
    readme = lesson.folder.relative_to(ROOT) / tr("README.md", "README_zh.md")
    say(tr(f"Lesson {lesson.number}, {lesson.title}: ", f"第 {lesson.number} 课，{lesson.title}："), BOLD)
    say(tr(f"  read   {readme}", f"  阅读  {readme}"))
    say(
        tr(f"  write  task {task.id}, {task.title}", f"  编写  任务 {task.id}，{task.title}")
        + _place(lesson, task.id)
    )
    say(tr("  save   and the verdict comes here", "  保存  结果就显示在这里"))


def _place(lesson: Lesson, task_id: str) -> str:
    """Where the task's TODO is, in the student's files."""
    for path in () if isinstance(lesson, Exam) else lesson.student_files():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            if line.strip().startswith(f"# TODO {task_id} "):
                return f" ({path.relative_to(ROOT)}:{number})"
    return ""


def say_done(lesson: Lesson) -> None:
    """A lesson has passed: what comes next."""
    say(tr(f"Lesson {lesson.number} is done.", f"第 {lesson.number} 课完成。"), GREEN)
    following = _following(lesson)
    if following is None:
        say(tr("Every lesson is done.", "全部课程已完成。"), GREEN)
    else:
        introduce(following)


def _following(lesson: Lesson) -> Lesson | None:
    """The next lesson that is not done, after this one if there is one."""
    final = exam()
    everything = [*lessons(), *([final] if final is not None else [])]
    here = [one.name for one in everything].index(lesson.name)
    rotated = everything[here + 1 :] + everything[:here]
    return next((one for one in rotated if not standing(one).done), None)


def say_death(exit_status: int | None, running: str) -> None:
    """The process ended before the tests did."""
    what = running or tr("the run", "这次运行")
    if exit_status is not None and exit_status < 0:
        name = signal.Signals(-exit_status).name
        text = tr(
            f"\nThe process died of {name} in {what}. Nothing is broken: save again.",
            f"\n进程在 {what} 中因 {name} 终止。不影响继续：改好后再保存。",
        )
    else:
        text = tr(
            f"\nYour code ended the whole process, with status {exit_status}, in {what}. Does it call os._exit?",
            f"\n你的代码在 {what} 中结束了整个进程，状态为 {exit_status}。是不是调用了 os._exit？",
        )
    say(text, RED)


def say_killed(seconds: float, running: str) -> None:
    """A test did not stop at its limit."""
    what = running or tr("The run", "这次运行")
    text = tr(
        f"\n{what} did not stop after {seconds:g} s and was killed. Is there a loop without an end?",
        f"\n{what} 超过 {seconds:g} 秒仍不停止，已强制结束。是不是有死循环？",
    )
    say(text, RED)
