"""The diagnosis as a student reads it: the mistake by name, why it happens, and where to look.

The corrected lines are shown only with `--explain`.
"""

import contextlib
import difflib
import textwrap
from pathlib import Path

from course.diagnosis import Diagnosis, Match, diagnose, entries_of
from course.errors import CourseError
from course.fingerprints import read_bank, tests_digest
from course.lang import current, tr
from course.mistakes import Entry, functions, places, read_catalogue
from course.outcomes import FAILED, TIMEOUT, TestOutcome
from course.registry import Lesson, has_solutions
from course.skeleton import without_markers

_WIDTH = 100


def lines(
    lesson: Lesson, outcomes: list[TestOutcome], folder: Path, explain: bool
) -> tuple[list[str], set[str]]:
    """The diagnosis of a run as lines, and the tasks of the mistakes named; nothing where nothing failed.

    `folder` holds the lesson's code that was run.
    """
    if not any(o.outcome in (FAILED, TIMEOUT) for o in outcomes):
        return [], set()
    try:
        found = diagnose(lesson, outcomes)
        if not found.named:
            return _unknown(found), set()
        heading = tr("Diagnosis: a known mistake", "诊断：这是一个已知的错误")
        if len(found.named) > 1:
            heading = tr("Diagnosis: two known mistakes at once", "诊断：同时有两个已知的错误")
        rows = [heading]
        for match in found.named:
            rows += _match(lesson, match, folder, explain)
    except CourseError as error:
        return [tr(f"No diagnosis: {error}", f"无法诊断：{error}")], set()
    if not explain and has_solutions():
        rows.append(tr("`--explain` shows the lines that do it.", "加上 `--explain` 可以看到出错的那几行。"))
    return rows, {match.task for match in found.named}


def prepare(lesson: Lesson) -> None:
    """Read what a diagnosis of the lesson needs, for a process whose forks will want it (0.1 s)."""
    with contextlib.suppress(CourseError):  # a diagnosis says it
        read_bank(lesson)
        tests_digest(lesson)
        read_catalogue(lesson)


def _unknown(found: Diagnosis) -> list[str]:
    rows = [tr(f"No diagnosis: {found.reason}.", f"没有诊断：{found.reason}。")]
    first = found.first_divergence
    if first is not None:
        rows.append(
            tr(f"Begin with {first.test}, where it first goes wrong:", f"从最先出错的 {first.test} 开始看：")
        )
        shown = [f"  {label}  {text}" for label, text in first.message if text != first.setup]
        rows += shown[:4]
    return rows


def _match(lesson: Lesson, match: Match, folder: Path, explain: bool) -> list[str]:
    rows = []
    if len(match.ids) > 1:
        rows.append(
            tr(
                f"One of these {len(match.ids)}: the tests that ran cannot tell them apart.",
                f"是下面 {len(match.ids)} 个之一：运行过的测试区分不了它们。",
            )
        )
    for entry in entries_of(lesson, match):
        where = ", ".join(dict.fromkeys(_place(*place, folder) for place in places(lesson, entry)))
        rows.append(f"  {entry.id} · " + tr("task", "任务") + f" {entry.task} · {where}")
        rows += _wrapped(entry.says_zh if current() == "zh" else entry.says)
        if entry.seen:
            rows.append("    " + tr("Others made it too: ", "真实项目里也有人犯过：") + entry.seen)
        rows += _explained(lesson, entry) if explain else []
    return rows


def _wrapped(text: str) -> list[str]:
    if current() == "zh":  # no spaces to break at: the terminal does it
        return [f"    {text}"]
    return textwrap.wrap(
        text, _WIDTH, initial_indent="    ", subsequent_indent="    ", break_long_words=False
    )


def _place(file: str, function: str, folder: Path) -> str:
    """File, line and function in the student's code."""
    try:
        own = functions((folder / file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        own = {}
    where = f"{file}:{own[function][0]}" if function in own else file
    return f"{where} {function}".rstrip()


def _explained(lesson: Lesson, entry: Entry) -> list[str]:
    """The mistake's lines against the solution's, as a diff."""
    if not has_solutions():
        return [
            "    "
            + tr(
                "--explain shows nothing here: this is a student release, without solutions.",
                "--explain 在这里不起作用：这是不含参考答案的学生版。",
            )
        ]
    rows: list[str] = []
    for file in dict.fromkeys(patch.file for patch in entry.patches):
        right = wrong = (lesson.solution_folder / file).read_text(encoding="utf-8")
        for patch in entry.patches:
            if patch.file == file:
                wrong = wrong.replace(patch.old, patch.new, 1)
        names = tr("the mistake", "错误的写法"), tr("the solution", "参考答案")
        difference = difflib.unified_diff(
            without_markers(wrong).splitlines(),
            without_markers(right).splitlines(),
            f"{file}: {names[0]}",
            f"{file}: {names[1]}",
            n=1,
            lineterm="",
        )
        rows += [f"    {row}" for row in difference if not row.startswith("@@")]
    return rows
