"""The closing summary of a run, by lesson and task with points, and the machine-readable report."""

import json
import platform
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course.failures import width
from course.lang import tr
from course.outcomes import (
    DEFAULT_SEED,
    FAILED,
    PASSED,
    SKIPPED,
    TIMEOUT,
    TODO,
    TaskResult,
    TestOutcome,
    by_task,
    points,
)
from course.progress import write_text
from course.registry import Exam, Lesson, has_solutions

if TYPE_CHECKING:
    from course.run import Run

REPORT_FORMAT = 1


def write(terminal: Any, run: "Run") -> None:
    """Print, for each lesson that ran: its tests that reached a TODO, its tasks, its points."""
    for lesson in sorted(run.lessons.values(), key=lambda lesson: lesson.name):
        outcomes = [o for o in run.outcomes if o.lesson == lesson.name]
        if not outcomes:
            continue
        whose = "" if run.implementation.is_students else f" · {run.implementation.asked}"
        terminal.write_sep("=", f"{lesson.name} · {lesson.title}{whose}")
        if len(run.lessons) == 1:
            for o in outcomes:
                if o.outcome == TODO:
                    line = f"TODO  {o.todo_task}  {o.todo_file}:{o.todo_line}"
                    terminal.write_line(f"{line:<32}  {o.file.removesuffix('_test')} {o.test}", yellow=True)
        results = by_task(lesson, outcomes)
        for result in results:
            _write_task(terminal, result)
        total = tr(
            f"{points(results)} of {lesson.points} points", f"得分 {points(results)} / {lesson.points}"
        )
        note = tr(" (not all tests were run)", "（只运行了部分测试）") if run.partial else ""
        terminal.write_line(f"  {total}{note}", bold=True)
        for line in _skipped(outcomes):
            terminal.write_line(f"  {line}")
        named: set[str] = set()
        if not isinstance(lesson, Exam) and any(o.outcome in (FAILED, TIMEOUT) for o in outcomes):
            named = _write_diagnosis(terminal, lesson, outcomes, run)
        if line := next_move(lesson, results, run.implementation.is_students, named):
            terminal.write_line(f"  {line}")


def _write_diagnosis(terminal: Any, lesson: Lesson, outcomes: list[TestOutcome], run: "Run") -> set[str]:
    """Print the diagnosis; returns the tasks of the mistakes named. Only a run with a failure pays for it."""
    from course import verdict

    named: set[str] = set()
    if run.seed != DEFAULT_SEED:
        rows = [tr("No diagnosis: it takes the default seed.", "没有诊断：只有默认种子才能诊断。")]
    else:
        rows, named = verdict.lines(lesson, outcomes, run.implementation.folder(lesson), run.explains)
    for index, row in enumerate(rows):
        terminal.write_line(f"  {row}", bold=index == 0)
    return named


def _write_task(terminal: Any, result: TaskResult) -> None:
    passed, all_run = result.count(PASSED), len(result.outcomes) - result.count(SKIPPED)
    if result.state == PASSED:
        note, color = tr(f"{passed} passed", f"{passed} 个测试通过"), {"green": True}
    elif result.state == FAILED:
        failed = result.count(FAILED, TIMEOUT)
        note, color = (
            tr(f"{failed} of {all_run} failed", f"{all_run} 个测试中 {failed} 个失败"),
            {"red": True},
        )
    elif result.state == TODO:
        at = f" {result.todo.todo_file}:{result.todo.todo_line}" if result.todo else ""
        note, color = f"TODO{at}", {"yellow": True}
        if result.waits_for:
            note += tr(f" (waits for {result.waits_for})", f"（等待任务 {result.waits_for}）")
    else:
        note, color = tr("not run", "未运行"), {}
    note += " " * (28 - width(note))
    terminal.write_line(
        f"  {result.task.id:<5} {result.points:>3}/{result.task.points:<3}  {note}  {result.task.title}",
        **color,
    )


def _skipped(outcomes: list[TestOutcome]) -> list[str]:
    reasons: dict[str, int] = {}
    for o in outcomes:
        if o.outcome == SKIPPED:
            reasons[o.reason] = reasons.get(o.reason, 0) + 1
    return [tr(f"{n} skipped: {reason}", f"跳过 {n} 个：{reason}") for reason, n in reasons.items()]


def next_move(lesson: Lesson, results: list[TaskResult], students: bool, named: Collection[str] = ()) -> str:
    """What the student does next: the first task with a named mistake, else the first that is not done."""
    if not students:
        return ""
    unfinished = [r for r in results if r.state in (TODO, FAILED)]
    # Other tasks may fail only because they use the one with the mistake.
    first = next((r for r in unfinished if r.task.id in named), unfinished[0] if unfinished else None)
    if first is None:
        return _when_passed(lesson, results)
    place = ""
    if first.todo:
        path = next((p for p in lesson.student_files() if p.name == first.todo.todo_file), None)
        place = f" ({_relative(path)}:{first.todo.todo_line})" if path else ""
    elif first.state == TODO and first.waits_for:
        place = tr(f" (it waits for task {first.waits_for})", f"（等待任务 {first.waits_for}）")
    return tr(
        f"Next: task {first.task.id}, {first.task.title}{place}. A hint: `course hint {first.task.id}`.",
        f"下一步：任务 {first.task.id}，{first.task.title}{place}。要提示：`course hint {first.task.id}`。",
    )


def _when_passed(lesson: Lesson, results: list[TaskResult]) -> str:
    """What comes after a run without a TODO or a failure."""
    if not all(r.state == PASSED for r in results):
        return ""
    files = {f"{o.file}.py" for r in results for o in r.outcomes}
    if left := [path.name for path in lesson.test_files() if path.name not in files]:
        return tr(
            f"All of these pass. `course check {lesson.number}` runs {left[0]} too.",
            f"这些全部通过。`course check {lesson.number}` 会连同 {left[0]} 一起运行。",
        )
    if isinstance(lesson, Exam):
        return tr("Done: the whole stack is yours.", "完成：整个训练栈都是你自己写的。")
    if not has_solutions():
        return tr("Done: all tests pass.", "完成：全部测试通过。")
    return tr(
        f"Done. `course diff {lesson.number}` shows your code beside the solution.",
        f"完成。`course diff {lesson.number}` 可以把你的代码和参考答案对照着看。",
    )


def _relative(path: Path) -> Path:
    """Relative to the working directory where it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def write_report(path: Path, run: "Run") -> None:
    """Write outcomes, points and observations as JSON."""
    import sys

    torch = sys.modules.get("torch")
    table = {
        "format": REPORT_FORMAT,
        "impl": run.implementation.asked,
        "seed": run.seed,
        "python": platform.python_version(),
        "torch": getattr(torch, "__version__", None),
        "partial": run.partial,
        "lessons": [
            {
                "lesson": lesson.name,
                "points": points(results),
                "of": lesson.points,
                "tasks": [
                    {
                        "id": r.task.id,
                        "title": r.task.title_en,
                        "state": r.state,
                        "points": r.points,
                        "of": r.task.points,
                        "tests": [o.nodeid for o in r.outcomes],
                    }
                    for r in results
                ],
            }
            for lesson in run.lessons.values()
            for results in [by_task(lesson, run.outcomes)]
        ],
        "tests": [o.as_json() for o in run.outcomes],
    }
    write_text(path, json.dumps(table, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
