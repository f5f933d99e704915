"""Reads `docs/notebooks/<lesson>.py`: cells in the py:percent form, text in two languages.

    # %% [markdown] en
    # # Lesson 01 · SGD, seen from above
    # %% [markdown] zh
    # # 第 01 课 · 从上面看 SGD
    # %%
    lr = 0.05

A text cell is written twice, English first. What stands above the first cell is the file's own docstring.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from course.errors import CourseError
from course.registry import ROOT, Lesson

SOURCES = ROOT / "docs" / "notebooks"
FILES = {"en": "lesson.ipynb", "zh": "lesson_zh.ipynb"}
_MARKER = re.compile(r"# %%(?: \[markdown\] (en|zh))?$")


@dataclass(frozen=True)
class Cell:
    """A code cell (the same text in both languages) or a text cell; `line` is where it begins in the source."""

    kind: str  # "code" or "markdown", as nbformat says
    en: str
    zh: str
    line: int

    def text(self, language: str) -> str:
        return self.zh if language == "zh" else self.en


def source_of(lesson: Lesson) -> Path:
    return SOURCES / f"{lesson.name}.py"


def read_cells(path: Path) -> list[Cell]:
    """The cells of a source; a CourseError names file and line of what is malformed."""
    if not path.is_file():
        raise CourseError(f"{_short(path)} is missing: every lesson has a notebook")
    pieces = _split(path)
    cells: list[Cell] = []
    english: tuple[str, int] | None = None
    for kind, text, line in pieces:
        if not text:
            raise CourseError(f"{_short(path)}:{line}: an empty cell")
        if (kind == "zh") != (english is not None):
            raise CourseError(
                f"{_short(path)}:{line}: a text cell `# %% [markdown] en` is followed by its twin `… zh`"
            )
        if kind == "en":
            english = text, line
        elif english is not None:
            cells.append(Cell("markdown", english[0], text, english[1]))
            english = None
        else:
            cells.append(Cell("code", text, text, line))
    if english is not None:
        raise CourseError(f"{_short(path)}:{english[1]}: this text cell has no twin in Chinese below it")
    if not cells or cells[0].kind != "markdown" or not cells[0].en.startswith("# "):
        raise CourseError(f"{_short(path)}: the first cell is a text that begins with a title, `# Lesson …`")
    return cells


def _split(path: Path) -> list[tuple[str, str, int]]:
    """(kind, text, line) of each cell: kind is "code", "en" or "zh"."""
    pieces: list[tuple[str, list[str], int]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("# %%"):
            match = _MARKER.match(line.rstrip())
            if match is None:
                raise CourseError(
                    f"{_short(path)}:{number}: a cell begins with `# %%`, `# %% [markdown] en` or "
                    f"`# %% [markdown] zh`, got `{line}`"
                )
            pieces.append((match[1] or "code", [], number))
        elif pieces:
            kind, lines, _ = pieces[-1]
            if kind != "code" and line.strip():
                if not line.startswith("#"):
                    raise CourseError(f"{_short(path)}:{number}: a line of a text cell begins with `# `")
                line = line[2:] if line.startswith("# ") else line[1:]
            lines.append(line.rstrip())
    return [(kind, "\n".join(lines).strip("\n"), number) for kind, lines, number in pieces]


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
