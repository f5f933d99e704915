"""What the student has achieved so far: `.course/progress.json`, written after each run on the own code.

A record belongs to the files it was made with: when they change, it is old and `course status` says so.
"""

import hashlib
import json
import os
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from course.lang import tr
from course.outcomes import TestOutcome
from course.registry import STATE, Lesson

_FILE = STATE / "progress.json"
_KEPT = (
    "nodeid",
    "lesson",
    "file",
    "test",
    "tasks",
    "outcome",
    "seconds",
    "todo_task",
    "todo_file",
    "todo_line",
)


def source_digest(lesson: Lesson) -> str:
    """A digest of the student's files and of the tests of the lesson."""
    digest = hashlib.sha256()
    for path in [*lesson.student_files(), *lesson.test_files()]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def record(ran: list[Lesson], outcomes: list[TestOutcome]) -> None:
    """Replace the records of the test files that ran."""
    table = _read()
    for lesson in ran:
        digest = source_digest(lesson)
        entry = table.get(lesson.name)
        if entry is None or entry.get("digest") != digest:
            entry = {"digest": digest, "files": {}}
        for file in {o.file for o in outcomes if o.lesson == lesson.name}:
            entry["files"][file] = [
                {key: getattr(o, key) for key in _KEPT}
                for o in outcomes
                if o.lesson == lesson.name and o.file == file
            ]
        table[lesson.name] = entry
    try:
        _write(table)
    except OSError as error:
        print(tr(f"progress not kept: {error}", f"进度未能保存：{error}"), file=sys.stderr)


def recall(lesson: Lesson) -> tuple[list[TestOutcome], bool, bool]:
    """(outcomes, whether they belong to the files as they are now, whether basic and advanced both ran)."""
    entry = _read().get(lesson.name, {})
    names = {f.name for f in fields(TestOutcome)}
    rows = [row for file in entry.get("files", {}).values() for row in file]
    outcomes = [TestOutcome(**{k: v for k, v in row.items() if k in names}) for row in rows]
    files = {path.stem for path in lesson.test_files()}
    complete = set(entry.get("files", {})) >= files
    return outcomes, entry.get("digest") == source_digest(lesson), complete


def _read() -> dict[str, Any]:
    """The table; a missing or broken file is an empty one (it can be made again by running the tests)."""
    try:
        table = json.loads(_FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def _write(table: dict[str, Any]) -> None:
    _FILE.parent.mkdir(exist_ok=True)
    write_text(_FILE, json.dumps(table))  # with an indent it takes 20 ms longer, and nobody reads it


def write_text(path: Path, text: str) -> None:
    """Replace a file by way of a temporary one beside it, so that it is whole at every moment."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
