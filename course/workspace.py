"""What a student does to the own files: compare with the solution, adopt it, start again.

Nothing that a student wrote is replaced without `--force`, and what is replaced is kept in `.course/backups/`.
"""

import difflib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from course.build import file_digest, read_manifest, skeletons
from course.errors import CourseError
from course.lang import tr
from course.outcomes import PASSED, TaskResult, by_task, points
from course.progress import recall, write_text
from course.registry import ROOT, STATE, TUTORIAL, Lesson
from course.skeleton import without_markers

BACKUPS = STATE / "backups"


@dataclass(frozen=True)
class Standing:
    """How far a lesson is: its task results, and whether they belong to the files as they are now."""

    lesson: Lesson
    results: list[TaskResult]
    fresh: bool
    complete: bool  # basic and advanced tests both ran

    @property
    def points(self) -> int:
        return points(self.results)

    @property
    def done(self) -> bool:
        return self.fresh and self.complete and all(r.state == PASSED for r in self.results)

    @property
    def started(self) -> bool:
        return bool(edited_files(self.lesson))


def standing(lesson: Lesson) -> Standing:
    outcomes, fresh, complete = recall(lesson)
    return Standing(lesson, by_task(lesson, outcomes), fresh, complete)


def edited_files(lesson: Lesson) -> list[Path]:
    """The student's files that differ from the generated skeletons."""
    texts = {s.path: s.text for s in skeletons(lesson)} if lesson.solution_files() else {}
    manifest = read_manifest()
    changed = []
    for path in lesson.student_files():
        name = path.relative_to(TUTORIAL).as_posix()
        if path in texts:
            same = path.read_text(encoding="utf-8") == texts[path]
        else:
            same = file_digest(path) == manifest.get(name)
        if not same:
            changed.append(path)
    return changed


def adopt(lesson: Lesson, force: bool) -> tuple[list[Path], Path | None]:
    """Put the solution into the student's files. Returns (files written, backup folder)."""
    texts = {
        lesson.folder / p.name: without_markers(p.read_text(encoding="utf-8")) for p in _solutions(lesson)
    }
    return _replace(lesson, texts, force, "adopt")


def reset(lesson: Lesson, force: bool) -> tuple[list[Path], Path | None]:
    """Bring the empty skeletons back. Returns (files written, backup folder)."""
    return _replace(lesson, {s.path: s.text for s in skeletons(lesson)}, force, "reset")


def diff(lesson: Lesson, spoil: bool) -> list[str]:
    """The student's files beside the solution, as a unified diff; only after the tests pass, or with `spoil`."""
    files = _solutions(lesson)
    now = standing(lesson)
    if not spoil and not now.done:
        raise CourseError(
            tr(
                f"The solution of lesson {lesson.number} is shown when all its tests pass: "
                f"`course check {lesson.number}` first, or `course diff {lesson.number} --spoil`.",
                f"第 {lesson.number} 课全部测试通过后才会显示参考答案：先运行 `course check {lesson.number}`，"
                f"或者用 `course diff {lesson.number} --spoil` 直接看。",
            )
        )
    lines: list[str] = []
    for path in files:
        mine = lesson.folder / path.name
        yours = mine.read_text(encoding="utf-8") if mine.is_file() else ""
        lines += difflib.unified_diff(
            yours.splitlines(),
            without_markers(path.read_text(encoding="utf-8")).splitlines(),
            f"tutorial/{lesson.path}/{path.name}",
            f"solutions/{lesson.path}/{path.name}",
            lineterm="",
        )
    return lines


def _solutions(lesson: Lesson) -> list[Path]:
    files = lesson.solution_files()
    if not files:
        raise CourseError(
            tr(
                f"The solution of lesson {lesson.number} is not in this copy of the course ({lesson.solution_folder}).",
                f"这份课程里没有第 {lesson.number} 课的参考答案（{lesson.solution_folder}）。",
            )
        )
    return files


def _replace(
    lesson: Lesson, texts: dict[Path, str], force: bool, verb: str
) -> tuple[list[Path], Path | None]:
    changed = {p: t for p, t in texts.items() if not p.is_file() or p.read_text(encoding="utf-8") != t}
    at_risk = [path for path in edited_files(lesson) if path in changed]
    if at_risk and not force:
        names = ", ".join(path.name for path in at_risk)
        raise CourseError(
            tr(
                f"You have edited {names}. `course {verb} {lesson.number} --force` replaces it and keeps a backup.",
                f"你改过 {names}。`course {verb} {lesson.number} --force` 会替换它，并保留一份备份。",
            )
        )
    backup = _back_up(lesson, list(changed)) if at_risk else None
    for path, text in changed.items():
        write_text(path, text)
    return list(changed), backup


def _back_up(lesson: Lesson, files: list[Path]) -> Path:
    """Copy the files to a folder that did not exist before."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1000):
        folder = BACKUPS / f"{lesson.name}-{stamp}{f'-{number}' if number else ''}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        for path in files:
            if path.is_file():
                shutil.copy2(path, folder / path.name)
        return folder
    raise CourseError(f"no free name for a backup below {BACKUPS.relative_to(ROOT)}")
