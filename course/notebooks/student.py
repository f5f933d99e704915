"""The student's code behind a notebook: which tasks are written, a fresh import of it, and what to say when it stops.

`course/notebook.py` is what a notebook imports; this is how it does it.
"""

import ast
import hashlib
import importlib
import linecache
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

from course import lang
from course.failures import TimeLimitExceeded
from course.implementation import Implementation
from course.registry import ROOT, Lesson

_digests: dict[str, str] = {}  # package of a lesson → digest of its files when they were imported
_own_folders: dict[Path, Lesson] = {}  # where the student's code lies that this kernel has loaded


class LeftOut(Exception):
    """Code was used that is not there: neither written nor given by a reference."""


class Absent:
    """Stands for an object that is not there; using it in any way raises `LeftOut`."""

    def __init__(self, sentence: str) -> None:
        self._sentence = sentence

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise LeftOut(self._sentence)

    def __getattr__(self, name: str) -> Any:
        raise LeftOut(self._sentence)


def unwritten(folder: Path) -> set[str]:
    """The tasks of a lesson's folder that can still be reached as `raise NotImplementedError("task …")`."""
    tasks = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
            for block in (getattr(node, key, None) for key in ("body", "orelse", "finalbody")):
                for statement in block if isinstance(block, list) else []:
                    if isinstance(statement, ast.Raise):
                        tasks |= set(
                            re.findall(r"^raise NotImplementedError\(.task ([\d.]+):", ast.unparse(statement))
                        )
                    if isinstance(statement, ast.Return | ast.Raise | ast.Continue | ast.Break):
                        break  # what follows is never run, e.g. a raise that was left below the new code
    return tasks


def load(implementation: Implementation, lesson: Lesson, name: str) -> Any:
    """`optimizer.SGDFromScratch` of this implementation, imported anew if a file of the lesson has changed."""
    folder = implementation.folder(lesson)
    package = f"{implementation.package}.{lesson.stage}.{lesson.name}"
    texts = [path.name.encode() + path.read_bytes() for path in sorted(folder.glob("*.py"))]
    digest = hashlib.sha256(b"\0".join(texts)).hexdigest()
    if _digests.get(package) != digest:
        for key in [key for key in sys.modules if key == package or key.startswith(package + ".")]:
            del sys.modules[key]
        importlib.invalidate_caches()
        linecache.checkcache()
    module, _, attribute = name.partition(".")
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # bytecode is compared by whole seconds
    try:
        found = getattr(getattr(implementation.lesson(lesson), module), attribute)
    finally:
        sys.dont_write_bytecode = before
    _digests[package] = digest
    if implementation.package != "solutions":
        _own_folders[folder] = lesson
    return found


def explain(error: BaseException) -> str | None:
    """One sentence for the student; None where only the notebook can be at fault."""
    if isinstance(error, LeftOut):
        return tr(f"Left out: {error}", f"跳过：{error}")
    if not _own_folders:
        return None
    if isinstance(error, NotImplementedError) and (match := re.match(r"task (\d+\.\d+):", str(error))):
        return tr(
            f"This experiment needs task {match[1]}, which is not written yet: `course hint {match[1]}`.",
            f"这个实验要用到任务 {match[1]}，它还没写：`course hint {match[1]}`。",
        )
    if isinstance(error, TimeLimitExceeded):
        what, what_zh = f"more than {error.args[0]:g} s", f"超过 {error.args[0]:g} 秒，是不是有死循环"
    else:
        what = what_zh = headline(error)
    own = _own_place(error)
    if own is not None:
        lesson, place = own
        return tr(
            f"Your code stopped at {place}: {what}. `course check {lesson.number}` tells more.",
            f"你的代码停在 {place}：{what_zh}。`course check {lesson.number}` 会给出更多信息。",
        )
    numbers = " ".join(sorted({lesson.number for lesson in _own_folders.values()}))
    line = _cell_line(error)
    return tr(
        f"The experiment stopped at `{line}`: {what}. It used your code: `course check {numbers}` tells what differs.",
        f"实验停在 `{line}`：{what_zh}。它用的是你的代码：`course check {numbers}` 会指出差别。",
    )


def _own_place(error: BaseException) -> tuple[Lesson, str] | None:
    """The innermost line of the student's own files on the way to the error, with the task above it."""
    place = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        lesson = _own_folders.get(path.parent)
        if lesson is None:
            continue
        above = linecache.getlines(str(path))[frame.f_code.co_firstlineno - 1 : number]
        tasks = re.findall(r"#\s*TODO\s+(\d+\.\d+)", "".join(above))
        task = f", {tr('task', '任务')} {tasks[-1]}" if tasks else ""
        line = linecache.getline(str(path), number).strip()
        place = lesson, f"{path.name}:{number} (`{line}`{task})"
    return place


def _cell_line(error: BaseException) -> str:
    """The innermost line of the cell on the way to the error: neither ours nor of an installed package."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "site-packages" not in frame.filename and not Path(frame.filename).is_relative_to(ROOT / "course"):
            return (frame.line or "").strip()
    return "?"


def headline(error: BaseException) -> str:
    """Type and first line of an error; for a SyntaxError also where."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename or '').name}:{error.lineno})"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _language() -> str:
    """That of the notebook by its file name, where the program that runs it tells us; else the course's."""
    shell = sys.modules["__main__"].__dict__
    name = str(shell.get("__vsc_ipynb_file__") or os.environ.get("JPY_SESSION_NAME", ""))
    if name.endswith(".ipynb"):
        return "zh" if name.endswith("_zh.ipynb") else "en"
    return lang.current()


def tr(en: str, zh: str) -> str:
    return zh if _language() == "zh" else en


def say(en: str, zh: str) -> None:
    print(tr(en, zh))
