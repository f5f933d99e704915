"""Which lessons there are: read from the folders, never from a list.

A folder `tutorial/stageNN_*/lessonNN_*` with a `lesson.toml` is a lesson. The file holds its titles and
its tasks (id, points, title, hint; English and Chinese).
"""

import difflib
import itertools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course.errors import CourseError
from course.lang import current, tr

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = ROOT / "tutorial"
SOLUTIONS = ROOT / "solutions"
EXAM = ROOT / "testcases"  # basic_test.py and advanced_test.py there test the assembled pieces
MISTAKES = ROOT / "testcases" / "mistakes"
STATE = ROOT / ".course"  # this student's progress and backups; ignored by git

POINTS_PER_LESSON = 100
TEST_FILES = ("basic_test.py", "advanced_test.py")
_TASK_KEYS = {"id": str, "points": int, "title": str, "title_zh": str, "hint": str, "hint_zh": str}


@dataclass(frozen=True)
class Task:
    """One thing to write, e.g. task 2.3; `lesson` files mark it with `# TODO 2.3 …`."""

    id: str
    points: int
    title_en: str
    title_zh: str
    hint_en: str
    hint_zh: str

    @property
    def title(self) -> str:
        return self.title_zh if current() == "zh" else self.title_en

    @property
    def hint(self) -> str:
        return self.hint_zh if current() == "zh" else self.hint_en


@dataclass(frozen=True)
class Lesson:
    """One lesson: its folder name, its stage's folder name, its titles and its tasks in order."""

    stage: str
    name: str
    title_en: str
    title_zh: str
    tasks: tuple[Task, ...]

    @property
    def number(self) -> str:
        return self.name[len("lesson") :][:2]

    @property
    def title(self) -> str:
        return self.title_zh if current() == "zh" else self.title_en

    @property
    def path(self) -> str:
        return f"{self.stage}/{self.name}"

    @property
    def folder(self) -> Path:
        return TUTORIAL / self.stage / self.name

    @property
    def solution_folder(self) -> Path:
        return SOLUTIONS / self.stage / self.name

    @property
    def testcases(self) -> Path:
        return self.folder / "testcases"

    @property
    def points(self) -> int:
        return sum(task.points for task in self.tasks)

    def test_files(self) -> list[Path]:
        return [self.testcases / name for name in TEST_FILES]

    def task(self, task_id: str) -> Task | None:
        return next((t for t in self.tasks if t.id == task_id), None)

    def student_files(self) -> list[Path]:
        return sorted(self.folder.glob("*.py"))

    def solution_files(self) -> list[Path]:
        return sorted(self.solution_folder.glob("*.py"))


class Exam(Lesson):
    """The exam over all lessons together: tests and `exam.toml` in testcases/, no code of its own."""

    @property
    def number(self) -> str:
        return self.name

    @property
    def path(self) -> str:
        return EXAM.name

    @property
    def folder(self) -> Path:
        return EXAM

    @property
    def testcases(self) -> Path:
        return EXAM

    def student_files(self) -> list[Path]:
        return [path for lesson in lessons() for path in lesson.student_files()]

    def solution_files(self) -> list[Path]:
        return []


def exam() -> Exam | None:
    """The exam, or None where there is none."""
    path = EXAM / "exam.toml"
    if not path.is_file():
        return None
    table = _read_toml(path)
    return Exam("", "exam", table["title"], table["title_zh"], _read_tasks(path, "exam", table))


def lessons(tutorial: Path = TUTORIAL) -> list[Lesson]:
    """All lessons, in the order of their numbers."""
    found = [read_lesson(path) for path in tutorial.glob("stage[0-9][0-9]_*/lesson[0-9][0-9]_*/lesson.toml")]
    found.sort(key=lambda lesson: lesson.name)
    for first, second in itertools.pairwise(found):
        if first.number == second.number:
            raise CourseError(f"two lessons have the number {first.number}: {first.path} and {second.path}")
    return found


def read_lesson(path: Path) -> Lesson:
    """Read one `lesson.toml`; every error names the file."""
    table = _read_toml(path)
    name = path.parent.name
    number = str(int(name[len("lesson") :][:2]))
    return Lesson(
        path.parent.parent.name, name, table["title"], table["title_zh"], _read_tasks(path, number, table)
    )


def _read_toml(path: Path) -> dict[str, Any]:
    """The table of a lesson.toml or exam.toml, its outer keys checked."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CourseError(f"{_short(path)}: {error}") from error
    for key in ("title", "title_zh"):
        if not isinstance(table.get(key), str):
            raise CourseError(f"{_short(path)}: `{key}` must be a string, got {table.get(key)!r}")
    unknown = set(table) - {"title", "title_zh", "task"}
    if unknown:
        raise CourseError(f"{_short(path)}: unknown keys {', '.join(sorted(unknown))}")
    return table


def _read_tasks(path: Path, number: str, table: dict[str, Any]) -> tuple[Task, ...]:
    tasks = tuple(_read_task(path, number, item) for item in table.get("task", []))
    ids = [task.id for task in tasks]
    if len(set(ids)) != len(ids):
        raise CourseError(f"{_short(path)}: a task id appears twice in {ids}")
    total = sum(task.points for task in tasks)
    if total != POINTS_PER_LESSON:
        raise CourseError(f"{_short(path)}: the points must add up to {POINTS_PER_LESSON}, got {total}")
    return tasks


def _read_task(path: Path, number: str, item: dict) -> Task:
    for key, kind in _TASK_KEYS.items():
        if not isinstance(item.get(key), kind) or not item[key]:
            raise CourseError(
                f"{_short(path)}: task {item.get('id', '?')}: `{key}` must be a non-empty "
                f"{kind.__name__}, got {item.get(key)!r}"
            )
    unknown = set(item) - set(_TASK_KEYS)
    if unknown:
        raise CourseError(f"{_short(path)}: task {item['id']}: unknown keys {', '.join(sorted(unknown))}")
    if not re.fullmatch(rf"{number}\.[1-9]\d*", item["id"]):
        raise CourseError(f"{_short(path)}: task id {item['id']!r} must look like {number}.1")
    return Task(*(item[key] for key in _TASK_KEYS))


def has_solutions() -> bool:
    """False in a student release, which `course release` makes."""
    return SOLUTIONS.is_dir()


def require_solutions(what: str) -> None:
    """Raise a CourseError in a student release; `what` needs the solutions."""
    if not has_solutions():
        raise CourseError(
            tr(
                f"This is a student release, without solutions: {what} does not work here.",
                f"这是不含参考答案的学生版，不能用 {what}。",
            )
        )


def find_lesson(asked: str) -> Lesson:
    """The lesson for "2", "02", "adamw", a folder name or a path; else an error with the nearest name."""
    known = lessons()
    text = asked.strip().rstrip("/")
    wanted = Path(text).name.lower() if "/" in text else text.lower()
    digits = wanted.removeprefix("lesson")
    final = exam()
    if final is not None and wanted in ("exam", "testcases"):
        return final
    for lesson in known:
        topic = lesson.name[len("lesson00_") :]
        if wanted in (lesson.name, topic) or (digits.isdigit() and int(digits) == int(lesson.number)):
            return lesson
    partial = [lesson for lesson in known if len(wanted) > 2 and wanted in lesson.name]
    if len(partial) == 1:
        return partial[0]
    names = {key: lesson for lesson in known for key in (lesson.name, lesson.name[len("lesson00_") :])}
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.4)
    if near:
        name = names[near[0]].name
        raise CourseError(
            tr(f"No lesson {asked!r}. Did you mean {name}?", f"没有课程 {asked!r}。你要找的是 {name} 吗？")
        )
    span = f"{known[0].number}–{known[-1].number}" if known else "-"
    raise CourseError(
        tr(
            f"No lesson {asked!r}. There are lessons {span}: `course status` lists them.",
            f"没有课程 {asked!r}。现有课程 {span}，用 `course status` 查看。",
        )
    )


def find_task(asked: str) -> tuple[Lesson, Task]:
    """The task for "2.3"; else an error that names the tasks of that lesson, or the nearest task."""
    final = exam()
    everything = lessons() + ([final] if final is not None else [])
    pairs = {task.id: (lesson, task) for lesson in everything for task in lesson.tasks}
    wanted = asked.strip()
    if wanted in pairs:
        return pairs[wanted]
    number = wanted.partition(".")[0]
    same_lesson = [task_id for task_id in pairs if task_id.partition(".")[0] == number]
    near = same_lesson or difflib.get_close_matches(wanted, pairs, n=3, cutoff=0.3) or list(pairs)[:3]
    raise CourseError(
        tr(
            f"No task {asked!r}. Did you mean one of {', '.join(near)}?",
            f"没有任务 {asked!r}。你要找的是 {'、'.join(near)} 吗？",
        )
    )


def lesson_of(path: Path) -> Lesson | None:
    """The lesson (or the exam) whose test file `path` is, or None."""
    if path.parent == EXAM and path.name in TEST_FILES:
        return exam()
    parts = path.resolve().parts
    for index, part in enumerate(parts):
        if re.fullmatch(r"lesson\d\d_\w+", part) and re.fullmatch(r"stage\d\d_\w+", parts[index - 1]):
            toml = Path(*parts[: index + 1]) / "lesson.toml"
            return read_lesson(toml) if toml.is_file() else None
    return None


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
