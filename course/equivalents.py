"""Mutants that a person has looked at: `testcases/mistakes/equivalent/<lesson>.toml`.

`[[equivalent]]` is a mutant that no test can catch, because it does what the solution does wherever the lesson
promises something; `because` says why. `[[same]]` is a mutant that *is* a mistake of the catalogue, written otherwise;
the diagnosis may call it by that name. A `patch` is one [old, new], as in the catalogue. Mutants are compared with
it by their syntax trees, so neither line numbers nor layout matter.
"""

import tomllib
from dataclasses import dataclass, field
from typing import Any

from course.errors import CourseError
from course.mistakes import _locate, read_catalogue
from course.mutants import Mutant, meaning
from course.registry import MISTAKES, Lesson

FOLDER = MISTAKES / "equivalent"
_KEYS = {"equivalent": {"patch", "because"}, "same": {"patch", "because", "mistake"}}


@dataclass
class Known:
    """What has been found out about mutants of one lesson; they are known by file and meaning."""

    equivalent: set[tuple[str, str]] = field(default_factory=set)
    same: dict[tuple[str, str], set[str]] = field(default_factory=dict)  # → ids of the mistakes that it is

    def is_equivalent(self, mutant: Mutant) -> bool:
        return (mutant.file, mutant.meaning) in self.equivalent

    def is_mistake(self, mutant: Mutant, ids: tuple[str, ...]) -> bool:
        """Whether one of the ids, which the tests cannot tell apart, is what the mutant is."""
        return not self.same.get((mutant.file, mutant.meaning), set()).isdisjoint(ids)


def read_known(lesson: Lesson) -> Known:
    """Read and check the lesson's file; a lesson need not have one.

    Raises:
        CourseError: wrong or empty keys, a patch that does not apply exactly once, an unknown mistake.
    """
    path, known = FOLDER / f"{lesson.name}.toml", Known()
    if not path.is_file():
        return known
    name = f"{FOLDER.name}/{path.name}"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise CourseError(f"{name}: {error}") from error
    if unknown := set(table) - set(_KEYS):
        raise CourseError(f"{name}: unknown tables {', '.join(sorted(unknown))}")
    sources = {file.name: file.read_text(encoding="utf-8") for file in lesson.solution_files()}
    ids = {entry.id for entry in read_catalogue(lesson).mistakes}
    for kind, keys in _KEYS.items():
        for number, item in enumerate(table.get(kind, []), 1):
            where = f"{name}: {kind} {number}"
            if set(item) != keys or not all(item.values()):
                raise CourseError(f"{where}: needs {', '.join(sorted(keys))}, got {', '.join(sorted(item))}")
            key = _key(where, item, sources)
            if kind == "equivalent":
                known.equivalent.add(key)
            elif item["mistake"] not in ids:
                raise CourseError(f"{where}: no mistake {item['mistake']!r} in the catalogue")
            else:
                known.same.setdefault(key, set()).add(item["mistake"])
    return known


def _key(where: str, item: dict[str, Any], sources: dict[str, str]) -> tuple[str, str]:
    if not isinstance(item["patch"], list) or len(item["patch"]) != 1:
        raise CourseError(f"{where}: `patch` is one [old, new] in a list, got {item['patch']!r}")
    patch = _locate(where, item["patch"][0], sources)
    try:
        return patch.file, meaning(sources[patch.file].replace(patch.old, patch.new, 1))
    except SyntaxError as error:
        raise CourseError(f"{where}: {patch.file} does not compile with the patch: {error}") from error
