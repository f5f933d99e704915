"""Whether a folder gives a solution away: `find_leaks(folder)` looks for the lines of every solution in every file.

A line of a task's region counts when it is long enough to say something and when the course does not show it anyway:
in `training/`, in code that a later lesson starts from, or in a test. Of those files only the code is public; what
their comments and docstrings say is searched like all other text. White space and kinds of quotes do not matter, nor
does where a line is broken, nor the escapes of JSON and TOML.
"""

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from course.registry import ROOT, lessons
from course.skeleton import find_regions

# Characters without white space. Shorter lines (`return loss`, `for path in files:`) are anybody's.
SHORTEST = 16
_PUBLIC = ("training/", "tutorial/", "testcases/")
# Lines that may stand anywhere, and why.
ALLOWED = {
    "os.fsync(file.fileno())": "how every Python program forces a file to the disk",
    "logits = model(input_ids)": "how every program calls a model",
    'labels = batch["labels"]': "how every program unpacks a batch",
    "for param, master in self.pairs():": "a comment of lesson 07's skeleton gives it as a hint",
    'state["optimizer_state_dict"] = optimizer.state_dict()': "how torch's own tutorials save an optimizer",
}


@dataclass(frozen=True)
class Leak:
    """A line of a solution, and the file that shows it."""

    file: str
    place: str  # of the line in the solution
    line: str


@dataclass
class Search:
    """What was searched, and what was found."""

    lines: int
    files: int
    leaks: list[Leak]


def find_leaks(folder: Path, files: Iterable[Path]) -> Search:
    """Search `files` (below `folder`) for the lines of all solutions of this repository."""
    texts = {
        path.relative_to(folder).as_posix(): path.read_bytes().decode("utf-8", "replace") for path in files
    }
    shown = "\n".join(
        squeeze(code_of(text))
        for name, text in texts.items()
        if name.endswith(".py") and name.startswith(_PUBLIC)
    )
    allowed = {squeeze(line) for line in ALLOWED}
    secret = {
        key: place for key, place in solution_lines().items() if key not in shown and key not in allowed
    }
    leaks = []
    for name, text in texts.items():
        squeezed = squeeze(_said(name, text))
        leaks += [Leak(name, place, key) for key, place in secret.items() if key in squeezed]
    return Search(len(secret), len(texts), leaks)


@cache
def solution_lines() -> dict[str, str]:
    """Squeezed line → where it stands, for every line inside a region that is long enough."""
    found: dict[str, str] = {}
    for lesson in lessons():
        for path in lesson.solution_files():
            source = path.read_text(encoding="utf-8")
            name = path.relative_to(ROOT).as_posix()
            code = _without_comments(source).splitlines()
            for region in find_regions(source, name):
                for number in range(region.begin + 1, region.end):
                    key = squeeze(code[number - 1])
                    if len(key) >= SHORTEST:
                        found.setdefault(key, f"{name}:{number}")
    return found


def squeeze(text: str) -> str:
    """Without white space, with one kind of quotes."""
    return re.sub(r"\s+", "", text).replace("'", '"')


def code_of(source: str) -> str:
    """A Python source without comments and docstrings."""
    lines = _without_comments(source).splitlines()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    return "\n".join(lines)


def _without_comments(source: str) -> str:
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(lines)


def _said(name: str, text: str) -> str:
    """What a file says: all strings of a notebook (it breaks a cell into many), else its text unescaped."""
    if name.endswith(".ipynb"):
        return "".join(_strings(json.loads(text)))
    return text.replace("\\n", "\n").replace('\\"', '"').replace("\\'", "'")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
