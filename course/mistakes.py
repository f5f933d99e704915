"""The catalogue: known mistakes and accepted variants, as patches on the solutions.

`testcases/mistakes/<lesson>.toml` holds `[[mistake]]` and `[[variant]]` tables; CONTRIBUTING.md describes
them. Every patch must apply, exactly once, or reading the catalogue is an error that names the file and the entry.

A student release (course/release.py) has neither solutions nor patches. There an entry has `places` instead: the file
and the function of each patch.
"""

import ast
import shutil
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from course.errors import CourseError
from course.registry import MISTAKES, ROOT, SOLUTIONS, Lesson, has_solutions
from course.skeleton import find_regions

_MISTAKE_KEYS = {"id", "task", "patch", "caught_by", "says", "says_zh", "seen", "raises", "varies"}
_RELEASED_KEYS = (_MISTAKE_KEYS - {"patch"}) | {"places"}
_VARIANT_KEYS = {"id", "patch", "says"}
_regions = cache(find_regions)  # of a solution, which dozens of entries patch


@dataclass(frozen=True)
class Patch:
    """One replacement in one file of the lesson's solution."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Entry:
    """A known mistake (`task` is set) or an accepted variant (`task` is empty)."""

    id: str
    patches: tuple[Patch, ...]
    says: str
    task: str = ""
    says_zh: str = ""
    caught_by: tuple[str, ...] = ()
    raises: str = ""
    seen: str = ""
    places: tuple[tuple[str, str], ...] = ()  # only in a student release; see `places`
    varies: bool = False  # it shows other values in every run, so that no values can identify it


@dataclass
class Catalogue:
    """All entries of one lesson."""

    mistakes: list[Entry] = field(default_factory=list)
    variants: list[Entry] = field(default_factory=list)


_parsed = cache(tomllib.loads)  # a diagnosis reads the catalogue twice; nobody writes into the tables


def read_catalogue(lesson: Lesson) -> Catalogue:
    """Read and check the lesson's file.

    Raises:
        CourseError: a wrong key, a patch that does not apply exactly once, a mistake outside its task.
    """
    path = MISTAKES / f"{lesson.name}.toml"
    name = str(path.relative_to(ROOT))
    if not path.is_file():
        raise CourseError(f"{name} is missing: every lesson has known mistakes and accepted variants")
    try:
        table = _parsed(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise CourseError(f"{name}: {error}") from error
    if unknown := set(table) - {"mistake", "variant"}:
        raise CourseError(f"{name}: unknown tables {', '.join(sorted(unknown))}")
    keys = _MISTAKE_KEYS if has_solutions() else _RELEASED_KEYS
    sources = {file.name: file.read_text(encoding="utf-8") for file in lesson.solution_files()}
    catalogue = Catalogue(
        [_read_entry(name, item, lesson, sources, keys) for item in table.get("mistake", [])],
        [_read_entry(name, item, lesson, sources, _VARIANT_KEYS) for item in table.get("variant", [])],
    )
    ids = [entry.id for entry in catalogue.mistakes + catalogue.variants]
    if twice := {entry_id for entry_id in ids if ids.count(entry_id) > 1}:
        raise CourseError(f"{name}: ids that appear twice: {', '.join(sorted(twice))}")
    return catalogue


def _read_entry(
    name: str, item: dict[str, Any], lesson: Lesson, sources: dict[str, str], keys: set[str]
) -> Entry:
    where = f"{name}: {item.get('id', '(no id)')}"
    is_mistake = keys is not _VARIANT_KEYS
    required = (keys - {"seen", "raises", "varies"}) if is_mistake else keys
    if missing := sorted(key for key in required if not item.get(key)):
        raise CourseError(f"{where}: `{'`, `'.join(missing)}` missing or empty")
    if unknown := set(item) - keys:
        raise CourseError(f"{where}: unknown keys {', '.join(sorted(unknown))}")
    patches = tuple(_locate(where, pair, sources) for pair in item.get("patch", []))
    if not is_mistake:
        return Entry(item["id"], patches, item["says"])
    if lesson.task(item["task"]) is None:
        raise CourseError(f"{where}: no task {item['task']!r} in lesson.toml")
    for patch in patches:
        _check_inside(where, patch, item["task"], sources[patch.file])
    return Entry(
        item["id"],
        patches,
        item["says"],
        item["task"],
        item["says_zh"],
        tuple(item["caught_by"]),
        item.get("raises", ""),
        item.get("seen", ""),
        tuple((file, function) for file, function in item.get("places", [])),
        bool(item.get("varies", False)),
    )


def _locate(where: str, pair: Any, sources: dict[str, str]) -> Patch:
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
        raise CourseError(f"{where}: `patch` is a list of [old, new], got {pair!r}")
    old, new = pair
    counts = {file: source.count(old) for file, source in sources.items() if old in source}
    if sum(counts.values()) != 1:
        found = ", ".join(f"{n} times in {file}" for file, n in counts.items()) or "nowhere"
        raise CourseError(
            f"{where}: the text to replace must occur once in the solution, found {found}: {old!r}"
        )
    return Patch(next(iter(counts)), old, new)


def _check_inside(where: str, patch: Patch, task: str, source: str) -> None:
    """A student can only make the mistake where the student writes: inside a region of the task."""
    start = source.index(patch.old)
    first = source.count("\n", 0, start) + 1
    last = source.count("\n", 0, start + len(patch.old.rstrip("\n"))) + 1
    if not any(r.task == task and r.begin < first and last < r.end for r in _regions(source, patch.file)):
        raise CourseError(f"{where}: {patch.file}:{first}-{last} is outside the regions of task {task}")


def places(lesson: Lesson, entry: Entry) -> tuple[tuple[str, str], ...]:
    """(file, dotted name of the innermost function) of each patch; the name is empty outside of functions."""
    if entry.places or not entry.patches:
        return entry.places
    found = []
    for patch in entry.patches:
        source = (lesson.solution_folder / patch.file).read_text(encoding="utf-8")
        line = source.count("\n", 0, source.index(patch.old)) + 1
        inside = [(start, name) for name, (start, end) in functions(source).items() if start <= line <= end]
        found.append((patch.file, max(inside, default=(0, ""))[1]))  # the innermost one begins last
    return tuple(dict.fromkeys(found))


def functions(source: str) -> dict[str, tuple[int, int]]:
    """Dotted name → (first line, last line) of every function of a module."""
    found: dict[str, tuple[int, int]] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}."
                if not isinstance(child, ast.ClassDef):
                    found[name[:-1]] = (child.lineno, child.end_lineno or child.lineno)
            visit(child, name)

    visit(ast.parse(source), "")
    return found


def write_patched(lesson: Lesson, entry: Entry, target: Path) -> None:
    """A copy of all solutions below `target`, with the entry's patches applied to its lesson."""
    shutil.copytree(SOLUTIONS, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for patch in entry.patches:
        path = target / lesson.stage / lesson.name / patch.file
        path.write_text(path.read_text(encoding="utf-8").replace(patch.old, patch.new, 1), encoding="utf-8")
