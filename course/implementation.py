"""Whose code is tested: `tutorial` (the student's), `solutions`, or any folder (`--impl PATH`).

`Implementation(root).lesson(lesson).optimizer` imports `<root>/<stage>/<lesson>/optimizer.py`, on first use,
so that a mistake in the file is reported by the test that needs it. A PATH may hold the whole tree
(`PATH/stage01_…/lesson02_…/optimizer.py`), lesson folders (`PATH/lesson02_…/optimizer.py`), or one
lesson's files.
"""

import hashlib
import importlib
import re
import sys
import types
from pathlib import Path
from types import ModuleType

from course.errors import CourseError
from course.lang import tr
from course.registry import ROOT, Lesson, find_lesson, require_solutions


class Implementation:
    """A folder of lesson code, imported under a package name of its own."""

    def __init__(self, asked: str, here: Path | None = None) -> None:
        """`asked` is "tutorial", "solutions" or a folder, relative to `here` (the working directory)."""
        self.asked = asked
        if asked in ("tutorial", "solutions"):
            self.root = ROOT / asked
        else:
            self.root = (here or Path.cwd()).joinpath(Path(asked).expanduser()).resolve()
        if asked == "solutions":
            require_solutions("--impl solutions")
        if not self.root.is_dir():
            raise CourseError(
                tr(
                    f"--impl {asked}: no such folder ({self.root}); use tutorial, solutions or a folder.",
                    f"--impl {asked}：没有这个文件夹（{self.root}）；可用 tutorial、solutions 或一个文件夹。",
                )
            )
        digest = hashlib.sha256(str(self.root).encode()).hexdigest()[:8]
        inside = self.root.parent == ROOT and self.root.name in ("tutorial", "solutions")
        self.package = self.root.name if inside else f"impl_{digest}"

    @property
    def is_students(self) -> bool:
        return self.package == "tutorial"

    def folder(self, lesson: Lesson) -> Path:
        """Where this implementation keeps the lesson's files."""
        candidates = [self.root / lesson.stage / lesson.name, self.root / lesson.name, self.root]
        for folder in candidates[:2]:
            if folder.is_dir():
                return folder
        if any((self.root / file.name).is_file() for file in lesson.student_files()):
            return self.root
        raise CourseError(
            tr(
                f"--impl {self.asked}: nothing for {lesson.name} under {self.root}.",
                f"--impl {self.asked}：{self.root} 下没有 {lesson.name} 的文件。",
            )
        )

    def lesson(self, lesson: Lesson) -> "LessonCode":
        return LessonCode(self, lesson)


class LessonCode:
    """One lesson's modules as attributes: `.optimizer` is `optimizer.py`."""

    def __init__(self, implementation: Implementation, lesson: Lesson) -> None:
        self._folder = implementation.folder(lesson)
        self._lesson = lesson
        # Real packages, so that relative imports (`from .optimizer import …`, and the capstone's
        # `from ...stage01_optimizers.lesson02_adamw.optimizer import …`) work in every tree alike.
        stage = _package(implementation.package, implementation.root, lesson.stage)
        self._package = _package(stage, self._folder.parent, lesson.name, self._folder)

    def __getattr__(self, name: str) -> ModuleType:
        if name.startswith("_"):
            raise AttributeError(name)
        path = self._folder / f"{name}.py"
        if not path.is_file():
            raise MissingFile(
                tr(
                    f"{path} is missing; `course reset {self._lesson.number}` brings the skeleton back.",
                    f"缺少 {path}；`course reset {self._lesson.number}` 可以恢复骨架文件。",
                )
            )
        return importlib.import_module(f"{self._package}.{name}")


class Stack:
    """All lessons of one implementation as attributes: `.lesson06.gradients` is lesson 06's gradients.py."""

    def __init__(self, implementation: Implementation) -> None:
        self._implementation = implementation

    def __getattr__(self, name: str) -> LessonCode:
        if not re.fullmatch(r"lesson\d\d", name):
            raise AttributeError(name)
        code = self._implementation.lesson(find_lesson(name))
        setattr(self, name, code)
        return code


class MissingFile(Exception):
    """A lesson's file is not where the implementation should have it."""


def _package(parent: str, parent_path: Path, name: str, path: Path | None = None) -> str:
    """Make `parent` and `parent.name` importable without an `__init__.py`; return the dotted name."""
    dotted = f"{parent}.{name}"
    for key, folder in ((parent, parent_path), (dotted, path or parent_path / name)):
        if key not in sys.modules:
            module = types.ModuleType(key)
            module.__path__ = [str(folder)]
            sys.modules[key] = module
    return dotted
