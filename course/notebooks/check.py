"""Sources, committed notebooks and a fresh run agree, and a notebook holds what a page may hold. One sentence each.

`check_files` reads; `check_fresh` also runs the cells and compares the structure of the outputs: how many there are of
which kind, their words, the size of the pictures. Numbers in them may differ: other machines round in another order.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course import drift
from course.leaks import find_leaks
from course.notebooks.execute import assemble, code_cells, execute, kind, picture, picture_size
from course.notebooks.source import FILES, read_cells, source_of
from course.registry import ROOT, Lesson

LARGEST_PICTURE, LARGEST_FILE = 40_000, 300_000  # bytes
NEAR = 0.12  # the size of a picture depends a little on the fonts of a machine
_PRIVATE = re.compile(r"0x[0-9a-f]{6,}|(?<![\w.])/(?:home|root|tmp|usr|Users|work)/|[A-Z]:\\\\")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|\b(?:inf|nan)\b")


def check_files(lesson: Lesson) -> list[str]:
    """Everything in which the two committed files fall short of their source, without running anything."""
    problems = []
    notebooks = []
    cells = read_cells(source_of(lesson))
    for language, name in FILES.items():
        path = lesson.folder / name
        wanted = assemble(cells, language)
        if not path.is_file():
            problems.append(f"{_short(path)} is missing: `course notebooks build {lesson.number}`")
            continue
        found = nbformat.read(path, as_version=4)
        notebooks.append(found)
        problems += _compare_cells(path, wanted, found)
        problems += _check_outputs(path, found)
        if path.stat().st_size > LARGEST_FILE:
            problems.append(
                f"{_short(path)}: {path.stat().st_size} bytes, a notebook may have {LARGEST_FILE}"
            )
    if len(notebooks) == len(FILES) and not problems:
        english, chinese = (lesson.folder / name for name in FILES.values())
        shapes = [_shapes(notebook) for notebook in notebooks]
        problems = _compare_outputs(chinese, shapes[0], shapes[1], words=False)
        problems = problems or drift.compare(english, chinese, ROOT)
    return problems


def check_leaks(chosen: list[Lesson]) -> list[str]:
    """Lines of any solution in these notebooks that the course does not show anywhere else."""
    public = [path for room in ("training", "tutorial") for path in (ROOT / room).rglob("*.py")]
    files = [lesson.folder / name for lesson in chosen for name in FILES.values()]
    found = find_leaks(ROOT, [*public, *(path for path in files if path.is_file())])
    return [
        f"{leak.file} holds a line of a solution, {leak.place}: `{leak.line}`"
        for leak in found.leaks
        if leak.file.endswith(".ipynb")
    ]


def check_fresh(lesson: Lesson) -> list[str]:
    """Run the notebook on the finished code; compare its outputs with those of the English file."""
    path = lesson.folder / FILES["en"]
    done = execute(lesson, read_cells(source_of(lesson)), "en", "solutions")
    if done.errors:
        return [f"{_short(path)}: {error}" for error in done.errors]
    committed = nbformat.read(path, as_version=4)
    return _compare_outputs(path, _shapes(committed), _shapes(done.notebook), words=True)


def _compare_cells(path: Path, wanted: NotebookNode, found: NotebookNode) -> list[str]:
    """The cells are those of the source, in order."""
    stale = f"is older than its source: `course notebooks build {path.parent.name[6:8]}`"
    if len(wanted.cells) != len(found.cells):
        return [f"{_short(path)} {stale} ({len(found.cells)} cells, the source has {len(wanted.cells)})"]
    for want, have in zip(wanted.cells, found.cells, strict=True):
        if (want.cell_type, want.source, want.id) != (have.cell_type, have.source, have.get("id")):
            return [f"{_short(path)} {stale} ({want.id} differs)"]
    return []


def _check_outputs(path: Path, notebook: NotebookNode) -> list[str]:
    """What a committed output must not hold."""
    problems = []
    for number, cell in enumerate(code_cells(notebook), 1):
        if cell.execution_count != number:
            problems.append(f"{cell.id} was not run in order")
        for output in cell.outputs:
            what = kind(output)
            if what not in ("text", "figure"):
                problems.append(
                    f"{cell.id} has an output of the kind {what}: only text and figures are shown"
                )
            elif what == "figure" and len(picture(output)) > LARGEST_PICTURE:
                size = len(picture(output))
                problems.append(f"{cell.id} has a picture of {size} bytes, {LARGEST_PICTURE} are allowed")
            elif what == "text" and (private := _PRIVATE.search(output.text)):
                problems.append(f"{cell.id} prints {private[0]}…: no addresses and no paths of a machine")
        if cell.metadata:
            problems.append(f"{cell.id} has metadata: {', '.join(cell.metadata)}")
    return [f"{_short(path)}: {problem}" for problem in problems]


@dataclass(frozen=True)
class Shape:
    """What an output is like on every machine: its kind, the size of a picture, the words of a text."""

    kind: str
    size: tuple[int, int] = (0, 0)
    lines: tuple[str, ...] = ()


def _shapes(notebook: NotebookNode) -> dict[str, list[Shape]]:
    """Cell → the shape of each of its outputs."""
    return {cell.id: [_shape(output) for output in cell.outputs] for cell in code_cells(notebook)}


def _shape(output: NotebookNode) -> Shape:
    what = kind(output)
    if what == "figure":
        return Shape(what, size=picture_size(picture(output)))
    text = _NUMBER.sub("#", output.text) if what == "text" else ""
    return Shape(what, lines=tuple(re.sub(r"\s+", " ", line).strip() for line in text.splitlines()))


def _compare_outputs(
    path: Path, before: dict[str, list[Shape]], now: dict[str, list[Shape]], words: bool
) -> list[str]:
    """The outputs of each cell, `before` in the file and `now`; without `words`, only how many lines there are."""
    problems = []
    for cell, shapes in before.items():
        fresh = now.get(cell, [])
        kinds = [", ".join(shape.kind for shape in side) or "no output" for side in (shapes, fresh)]
        if kinds[0] != kinds[1]:
            problems.append(f"{cell} has {kinds[0]}, and now {kinds[1]}")
            continue
        for old, new in zip(shapes, fresh, strict=True):
            if any(abs(a - b) > NEAR * max(a, b) for a, b in zip(old.size, new.size, strict=True)):
                sizes = ["×".join(map(str, shape.size)) for shape in (old, new)]
                problems.append(f"{cell} has a picture of {sizes[0]} pixels, and now {sizes[1]}")
            if len(old.lines) != len(new.lines):
                problems.append(f"{cell} printed {len(old.lines)} lines, and now {len(new.lines)}")
            elif words and old.lines != new.lines:
                pairs = zip(old.lines, new.lines, strict=True)
                first, second = next((a, b) for a, b in pairs if a != b)
                problems.append(f"{cell} printed `{first}`, and now `{second}`")
    return [f"{_short(path)}: {problem}" for problem in problems]


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
