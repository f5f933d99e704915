"""Skeletons from solutions: find the task regions of a solution and cut them out.

A region is a comment line `# TODO 2.3 what to do`, any further comment lines, `# BEGIN SOLUTION`, statements,
`# END SOLUTION`. The skeleton keeps the comments and puts `raise NotImplementedError("task 2.3: …")` in the
place of the statements. Markers are found among the comment tokens, so a string that looks like one is text.
"""

import ast
import io
import re
import tokenize
from dataclasses import dataclass

from course.errors import CourseError

_TODO = re.compile(r"#\s*TODO\s+(\d+\.\d+)\s+(\S.*?)\s*$")
_TODO_LOOSE = re.compile(r"#\s*TODO\b")
_BEGIN = re.compile(r"#\s*BEGIN SOLUTION\s*$")
_END = re.compile(r"#\s*END SOLUTION\s*$")
_MARKER_LOOSE = re.compile(r"#.*\b(BEGIN|END)\W+SOLUTION\b", re.IGNORECASE)


@dataclass(frozen=True)
class Region:
    """One task region; lines are 1-based and inclusive, `begin` and `end` are those of the two markers."""

    task: str
    title: str
    todo: int
    begin: int
    end: int


def find_regions(source: str, name: str) -> list[Region]:
    """All regions of a solution, checked. `name` is the file's name for messages.

    Raises:
        CourseError: a malformed, unclosed, nested, empty or misplaced region; names file and line.
    """
    lines = source.splitlines()
    comments = _own_line_comments(source, name)
    regions: list[Region] = []
    todo: tuple[int, str, str] | None = None  # line, task, title
    begin: int | None = None
    for line, text in comments.items():
        if match := _TODO.match(text):
            if begin is not None:
                raise CourseError(
                    f"{name}:{line}: TODO {match[1]} inside the region that begins at line {begin}"
                )
            if todo is not None:
                raise CourseError(f"{name}:{todo[0]}: TODO {todo[1]} has no `# BEGIN SOLUTION` below it")
            todo = (line, match[1], match[2])
        elif _TODO_LOOSE.match(text):
            raise CourseError(f"{name}:{line}: a TODO line reads `# TODO 2.3 what to do`, got `{text}`")
        elif _BEGIN.match(text):
            if begin is not None:
                raise CourseError(
                    f"{name}:{line}: BEGIN SOLUTION inside the region that begins at line {begin}"
                )
            if todo is None or any(n not in comments for n in range(todo[0], line)):
                raise CourseError(
                    f"{name}:{line}: BEGIN SOLUTION without a `# TODO 2.3 what to do` directly above it"
                )
            begin = line
        elif _END.match(text):
            if begin is None or todo is None:
                raise CourseError(f"{name}:{line}: END SOLUTION without a BEGIN SOLUTION")
            regions.append(Region(todo[1], todo[2], todo[0], begin, line))
            todo = begin = None
        elif _MARKER_LOOSE.match(text):
            raise CourseError(
                f"{name}:{line}: write the marker exactly as `# BEGIN SOLUTION` or `# END SOLUTION`"
            )
    if begin is not None:
        raise CourseError(f"{name}:{begin}: BEGIN SOLUTION has no END SOLUTION")
    if todo is not None:
        raise CourseError(f"{name}:{todo[0]}: TODO {todo[1]} has no `# BEGIN SOLUTION` below it")
    _check_places(source, lines, regions, name)
    return regions


def make_skeleton(source: str, name: str) -> str:
    """The student's file: each region of `source` becomes a NotImplementedError that names its task."""
    lines = source.splitlines()
    for region in reversed(find_regions(source, name)):
        begin_line = lines[region.begin - 1]
        indent = begin_line[: len(begin_line) - len(begin_line.lstrip())]
        message = f"task {region.task}: {region.title}".replace("\\", "\\\\").replace('"', '\\"')
        lines[region.begin - 1 : region.end] = [f'{indent}raise NotImplementedError("{message}")']
    skeleton = "\n".join(lines) + "\n"
    ast.parse(skeleton)  # the checks above make this certain; a crash here is a bug of this file
    return skeleton


def without_markers(source: str) -> str:
    """A solution as a student would write it: the BEGIN and END lines are gone, the TODO lines stay."""
    kept = [
        line for line in source.splitlines() if not (_BEGIN.match(line.strip()) or _END.match(line.strip()))
    ]
    return "\n".join(kept) + "\n"


def _own_line_comments(source: str, name: str) -> dict[int, str]:
    """Line number → text of each comment that has a line to itself; a marker elsewhere is an error."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
        ast.parse(source)
    except (SyntaxError, tokenize.TokenError) as error:
        line = getattr(error, "lineno", None) or 1
        raise CourseError(f"{name}:{line}: {error}") from error
    comments = {}
    for token in tokens:
        if token.type != tokenize.COMMENT:
            continue
        if token.line[: token.start[1]].strip():
            if _MARKER_LOOSE.match(token.string):
                raise CourseError(f"{name}:{token.start[0]}: a marker needs a line of its own")
            continue
        comments[token.start[0]] = token.string
    return comments


def _check_places(source: str, lines: list[str], regions: list[Region], name: str) -> None:
    """A region lies inside a function and holds whole statements at its own indentation, not only `pass`."""
    tree = ast.parse(source)
    blocks = [
        block
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        for block in _blocks(node)
    ]
    for region in regions:
        inside = range(region.begin + 1, region.end)
        touching = [
            block
            for block in blocks
            if any(s.lineno in inside or (s.end_lineno or s.lineno) in inside for s in block)
        ]
        whole = [
            block
            for block in touching
            if all(
                (s.lineno in inside) == ((s.end_lineno or s.lineno) in inside)
                and not (s.lineno <= region.begin and (s.end_lineno or s.lineno) >= region.end)
                for s in block
            )
        ]
        if not whole:
            raise CourseError(
                f"{name}:{region.begin}: the region of task {region.task} must hold "
                "whole statements inside a function"
            )
        statements = [s for s in whole[0] if s.lineno in inside]
        if all(isinstance(s, ast.Pass) or _is_text(s) for s in statements):
            raise CourseError(f"{name}:{region.begin}: the region of task {region.task} is empty")
        column = statements[0].col_offset
        markers = {
            len(lines[n - 1]) - len(lines[n - 1].lstrip()) for n in (region.todo, region.begin, region.end)
        }
        if markers != {column}:
            raise CourseError(
                f"{name}:{region.begin}: the markers of task {region.task} must be indented "
                "like the statements between them"
            )


def _blocks(node: ast.AST) -> list[list[ast.stmt]]:
    """The statement lists that belong to one node: bodies, else branches, handlers, finally."""
    found = [getattr(node, key, None) for key in ("body", "orelse", "finalbody")]
    return [block for block in found if isinstance(block, list) and block and isinstance(block[0], ast.stmt)]


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
