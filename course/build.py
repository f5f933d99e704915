"""`course build`: write the skeletons; `course build --check`: skeletons, tasks, tests, pages, fingerprints and
the gallery of mistakes agree.

`tutorial/skeletons.sha256` holds the digest of every generated file, in the format of `sha256sum -c`. A file
in `tutorial/` that differs from its digest was edited by a student and is left alone unless `--force` is given.
"""

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from course import fingerprints, gallery, pages
from course.errors import CourseError
from course.mistakes import read_catalogue
from course.progress import write_text
from course.registry import ROOT, SOLUTIONS, TUTORIAL, Lesson, exam, has_solutions, lessons
from course.skeleton import find_regions, make_skeleton

MANIFEST = TUTORIAL / "skeletons.sha256"
RELEASED = TUTORIAL / ".skeletons"  # of a student release, where they cannot be made from solutions


@dataclass(frozen=True)
class Skeleton:
    """One generated file: where it goes, and its text."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        return self.path.relative_to(TUTORIAL).as_posix()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def now(self) -> str | None:
        """Digest of the file on disk, None where there is none."""
        return file_digest(self.path) if self.path.is_file() else None


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, as `sha256sum` prints it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def skeletons(lesson: Lesson) -> list[Skeleton]:
    """The lesson's files as the student gets them."""
    kept = [] if has_solutions() else sorted((RELEASED / lesson.path).glob("*.py"))
    found = [Skeleton(lesson.folder / path.name, path.read_text(encoding="utf-8")) for path in kept]
    for path in lesson.solution_files():
        name = str(path.relative_to(ROOT))
        found.append(
            Skeleton(lesson.folder / path.name, make_skeleton(path.read_text(encoding="utf-8"), name))
        )
    if not found:
        raise CourseError(f"{lesson.solution_folder.relative_to(ROOT)} has no .py file")
    return found


def read_manifest() -> dict[str, str]:
    """File name below tutorial/ → digest of the skeleton that was generated."""
    if not MANIFEST.is_file():
        return {}
    pairs = [
        line.split(None, 1) for line in MANIFEST.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    return {name.strip().lstrip("*"): digest for digest, name in pairs}


def build(chosen: list[Lesson], force: bool) -> tuple[list[str], list[str]]:
    """Write the skeletons of the chosen lessons. Returns (written, edited files that were left alone)."""
    manifest = read_manifest()
    written, kept = [], []
    for skeleton in (s for lesson in chosen for s in skeletons(lesson)):
        now = skeleton.now()
        if now == skeleton.digest:
            manifest[skeleton.name] = skeleton.digest
        elif now is not None and now != manifest.get(skeleton.name) and not force:
            kept.append(skeleton.name)
        else:
            skeleton.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(skeleton.path, skeleton.text)
            manifest[skeleton.name] = skeleton.digest
            written.append(skeleton.name)
    rows = [
        f"{digest}  {name}\n" for name, digest in sorted(manifest.items()) if (SOLUTIONS / name).is_file()
    ]
    write_text(MANIFEST, "".join(rows))
    return written, kept


def check(chosen: list[Lesson]) -> list[str]:
    """Everything that does not agree, one sentence each; an empty list is a pass."""
    problems = _check_folders() if len(chosen) == len(lessons()) else []
    final = exam()
    if final is not None and len(chosen) == len(lessons()):
        problems += _check_tests(final)
    for lesson in chosen:
        try:
            problems += _check_skeletons(lesson)
            problems += _check_tasks(lesson)
            problems += pages.check(lesson)
            problems += _check_catalogue(lesson)
        except CourseError as error:
            problems.append(str(error))
    try:
        return problems + gallery.check()
    except CourseError as error:  # said above already, of its lesson
        return problems if str(error) in problems else [*problems, str(error)]


def _check_folders() -> list[str]:
    """No folder that looks like a lesson but is not one; no solution without a lesson."""
    known = {lesson.path for lesson in lessons()}
    found = {
        f"{path.parent.name}/{path.name}"
        for base in (TUTORIAL, SOLUTIONS)
        for path in base.glob("stage*/lesson*")
        if path.is_dir() and any(p.suffix in (".py", ".md", ".toml") for p in path.iterdir())
    }
    return [f"{path}: a folder without lesson.toml" for path in sorted(found - known)]


def _check_skeletons(lesson: Lesson) -> list[str]:
    manifest = read_manifest()
    problems = []
    wanted = {skeleton.path: skeleton for skeleton in skeletons(lesson)}
    for skeleton in wanted.values():
        now = skeleton.now()
        if now == skeleton.digest == manifest.get(skeleton.name):
            continue
        if now is None:
            problem = "is missing: run `course build`"
        elif now == skeleton.digest:
            problem = "is not in tutorial/skeletons.sha256: run `course build`"
        elif now == manifest.get(skeleton.name):
            problem = "is older than its solution: run `course build`"
        else:
            problem = "was edited by hand (`course build --force` would replace it)"
        problems.append(f"tutorial/{skeleton.name} {problem}")
    stray = [path for path in lesson.student_files() if path not in wanted]
    problems += [f"{path.relative_to(ROOT)} has no solution: a stray file" for path in stray]
    return problems


def _check_tasks(lesson: Lesson) -> list[str]:
    """Markers, lesson.toml and tests speak of the same tasks, with the same titles."""
    problems = []
    marked: dict[str, str] = {}
    for path in lesson.solution_files():
        name = str(path.relative_to(ROOT))
        for region in find_regions(path.read_text(encoding="utf-8"), name):
            marked.setdefault(region.task, name)
            task = lesson.task(region.task)
            if task is None:
                problems.append(
                    f"{name}:{region.todo}: task {region.task} is not in {lesson.name}/lesson.toml"
                )
            elif task.title_en != region.title:
                problems.append(
                    f"{name}:{region.todo}: TODO {region.task} says {region.title!r}, "
                    f"lesson.toml says {task.title_en!r}"
                )
    problems += [
        f"{lesson.name}: task {t.id} has no region in solutions/" for t in lesson.tasks if t.id not in marked
    ]
    return problems + _check_tests(lesson)


def _check_tests(lesson: Lesson) -> list[str]:
    """Every test says its setup and its tasks; every task has a basic test."""
    problems = []
    tested: dict[str, set[str]] = {task.id: set() for task in lesson.tasks}
    for test in lesson_tests(lesson):
        if not test.tasks:
            problems.append(f"{test.place}: {test.name} has no @pytest.mark.task(...)")
        if not test.docstring:
            problems.append(f"{test.place}: {test.name} has no docstring; one line says the setup")
        for task_id in test.tasks:
            if task_id not in tested:
                problems.append(
                    f"{test.place}: {test.name} names task {task_id}, which lesson.toml does not have"
                )
            else:
                tested[task_id].add(test.file)
    problems += [
        f"{lesson.name}: task {t} has no basic test"
        for t, files in tested.items()
        if "basic_test" not in files
    ]
    return problems


def _check_catalogue(lesson: Lesson) -> list[str]:
    """Patches apply, the tests that a mistake names exist, and the fingerprints are those of this state."""
    names = {test.name for test in lesson_tests(lesson)}
    old, gone = fingerprints.stale(lesson)
    ids = [*(entry.id for entry in old), *gone]
    stale = f"{fingerprints.path_of(lesson).relative_to(ROOT)}: {len(ids)} are old or missing ({', '.join(ids[:3])} …)"
    problems = [f"{stale}: run `course build`"] if ids else []
    return problems + [
        f"testcases/mistakes/{lesson.name}.toml: {entry.id}: no test {test!r} in {lesson.name}"
        for entry in read_catalogue(lesson).mistakes
        for test in entry.caught_by
        if test not in names
    ]


@dataclass(frozen=True)
class TestFunction:
    """A test function as its source says, without running anything."""

    __test__ = False

    file: str
    name: str
    line: int
    tasks: tuple[str, ...]
    docstring: str

    @property
    def place(self) -> str:
        return f"{self.file}.py:{self.line}"


def lesson_tests(lesson: Lesson) -> list[TestFunction]:
    """The test functions of the lesson's two test files."""
    found = []
    for path in lesson.test_files():
        if not path.is_file():
            raise CourseError(f"{path.relative_to(ROOT)} is missing")
        for node in _functions(path):
            found.append(
                TestFunction(
                    path.stem, node.name, node.lineno, _task_marks(node), ast.get_docstring(node) or ""
                )
            )
    return found


def _functions(path: Path) -> Iterator[ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            yield node


def _task_marks(node: ast.FunctionDef) -> tuple[str, ...]:
    """The string arguments of @pytest.mark.task(...)."""
    return tuple(
        argument.value
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.task"
        for argument in decorator.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    )
