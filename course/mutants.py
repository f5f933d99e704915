"""Mutants: copies of a lesson's solution with one small random slip, made on the syntax tree.

They measure what the catalogue cannot: whether the tests notice mistakes that nobody thought of, and whether the
diagnosis keeps silent about them. `draw(lesson, count, seed)` makes them: inside the task regions only, spread over
the lesson's tasks and over the kinds of course/mutation_kinds.py, the same ones for the same seed. None is an entry
of the catalogue. Messages of exceptions, annotations and f-strings are left alone: nothing is promised about them.
"""

import ast
import itertools
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from course.mistakes import read_catalogue
from course.mutation_kinds import DROPPED, SWAPPED, expression_changes, statement_changes
from course.registry import Lesson
from course.skeleton import Region, find_regions


@dataclass(frozen=True)
class Mutant:
    """One slip. `old` and `new` are the texts that differ; `patch` holds them as whole lines, as a catalogue entry
    would; `meaning` is the syntax tree of the whole changed file, in words."""

    lesson: Lesson
    file: str
    task: str
    line: int
    kind: str
    old: str
    new: str
    source: str
    patch: tuple[str, str]
    meaning: str

    @property
    def id(self) -> str:
        """Lesson, position and mutation, on one line."""
        old, new = (" ".join(text.split()) or "nothing" for text in (self.old, self.new))
        return f"{self.lesson.name} {self.file}:{self.line} task {self.task}, {self.kind}: `{old}` → `{new}`"


def draw(lesson: Lesson, count: int, seed: int) -> list[Mutant]:
    """`count` different mutants of the lesson's solution, or all where there are fewer."""
    files = [_File(path) for path in lesson.solution_files()]
    everything = "\n".join(file.source for file in files)
    choice = random.Random(f"{seed} {lesson.name}")
    queues: dict[str, dict[str, list[tuple[_File, _Edit]]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        for edit in file.edits():
            queues[edit.task][edit.kind].append((file, edit))
    for kinds in queues.values():
        for candidates in kinds.values():
            choice.shuffle(candidates)
    by_task = [_in_turn(_shuffled(choice, kinds.values())) for _, kinds in sorted(queues.items())]
    known = {meaning for patched in _catalogue(lesson) for meaning in patched}
    known |= {file.meaning for file in files}
    drawn: list[Mutant] = []
    for file, edit in _in_turn(by_task):
        if len(drawn) == count:
            break
        mutant = file.mutant(lesson, edit, everything)
        if mutant.meaning not in known:
            known.add(mutant.meaning)
            drawn.append(mutant)
    return sorted(drawn, key=lambda m: (m.file, m.line, m.id))


def meaning(source: str) -> str:
    """What a source says, layout, comments and idle `pass` aside: two sources of one meaning are the same program."""
    return _meaning(ast.parse(source))


def _meaning(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and len(block) > 1:
                setattr(node, name, [s for s in block if not isinstance(s, ast.Pass)] or block[:1])
    return ast.dump(tree)


def write_mutant(mutant: Mutant, target: Path) -> None:
    """The lesson's solution below `target`, with the slip in it."""
    folder = target / mutant.lesson.path
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(mutant.lesson.solution_folder, folder, ignore=ignore)
    (folder / mutant.file).write_text(mutant.source, encoding="utf-8")


def _shuffled(choice: random.Random, groups: Iterable[list]) -> list[list]:
    found = list(groups)
    choice.shuffle(found)
    return found


def _in_turn(groups: Iterable[Iterable]) -> Iterator:
    """One of each group, then the next of each: the spread over tasks and kinds."""
    nothing = object()
    for turn in itertools.zip_longest(*groups, fillvalue=nothing):
        yield from (item for item in turn if item is not nothing)


def _catalogue(lesson: Lesson) -> Iterator[list[str]]:
    """For each mistake and variant, the meanings of the files that it changes."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in lesson.solution_files()}
    catalogue = read_catalogue(lesson)
    for entry in catalogue.mistakes + catalogue.variants:
        changed: dict[str, str] = {}
        for patch in entry.patches:
            changed[patch.file] = changed.get(patch.file, sources[patch.file]).replace(
                patch.old, patch.new, 1
            )
        yield [meaning(source) for source in changed.values()]


@dataclass
class _Edit:
    """Put `new` in place of `parent.field`, or of its items `first` to `end`."""

    kind: str
    task: str
    parent: ast.AST
    field: str
    first: int | None
    end: int
    new: list[ast.AST]

    @property
    def old(self) -> list[ast.AST]:
        value = getattr(self.parent, self.field)
        return [value] if self.first is None else value[self.first : self.end]

    def swap_in(self, nodes: list[ast.AST], count: int) -> None:
        """Replace the `count` nodes that stand there now."""
        if self.first is None:
            setattr(self.parent, self.field, nodes[0])
        else:
            getattr(self.parent, self.field)[self.first : self.first + count] = nodes


class _File:
    """One file of a solution, and the edits that its regions allow."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.source = path.read_text(encoding="utf-8")
        self.regions = find_regions(self.source, path.name)
        self.tree = ast.parse(self.source)
        self.meaning = meaning(self.source)
        # Columns of the syntax tree count bytes.
        self.bytes = self.source.encode()
        self.line_starts = [
            0,
            *itertools.accumulate(len(line) for line in self.bytes.splitlines(keepends=True)),
        ]

    def edits(self) -> Iterator[_Edit]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Module | ast.ClassDef):
                for function in node.body:
                    if isinstance(function, ast.FunctionDef):
                        yield from self._edits_below(function, function)

    def _edits_below(self, node: ast.AST, function: ast.FunctionDef) -> Iterator[_Edit]:
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "msg"):
                continue
            if isinstance(value, list) and value and self._is_block(value):
                is_loop_body = isinstance(node, ast.For | ast.While) and field == "body"
                for kind, first, end, statements in statement_changes(value, is_loop_body):
                    region = self._region(value[first], value[end - 1])
                    if region and not _leaves_unbound(function, value[first:end], kind):
                        yield _Edit(kind, region.task, node, field, first, end, list(statements))
            for n, child in enumerate(value if isinstance(value, list) else [value]):
                if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr | ast.Raise):
                    continue
                if isinstance(child, ast.expr) and (region := self._region(child, child)):
                    first_item = n if isinstance(value, list) else None
                    for kind, new in expression_changes(child, node, field):
                        yield _Edit(kind, region.task, node, field, first_item, n + 1, [new])
                yield from self._edits_below(child, function)

    def _is_block(self, items: list) -> bool:
        """Statements; but an `elif` is no statement that could go alone, though the tree shows it as one."""
        if not isinstance(items[0], ast.stmt):
            return False
        start = self.line_starts[items[0].lineno - 1] + items[0].col_offset
        return not self.bytes.startswith(b"elif", start)

    def _region(self, first: ast.stmt | ast.expr, last: ast.stmt | ast.expr) -> Region | None:
        end = last.end_lineno or last.lineno
        return next((r for r in self.regions if r.begin < first.lineno and end < r.end), None)

    def mutant(self, lesson: Lesson, edit: _Edit, everything: str) -> Mutant:
        """Make the edit in the text, and make sure that the text now says what the edited tree says."""
        wanted = self._edited_tree(edit)
        first, last = edit.old[0], edit.old[-1]
        assert isinstance(first, ast.stmt | ast.expr)
        assert isinstance(last, ast.stmt | ast.expr)
        start = self.line_starts[first.lineno - 1] + first.col_offset
        end = self.line_starts[(last.end_lineno or 0) - 1] + (last.end_col_offset or 0)
        for new in _texts(edit.new, first.col_offset):
            source = (self.bytes[:start] + new.encode() + self.bytes[end:]).decode()
            tree = _parsed(source)
            if tree is None or ast.dump(tree) != wanted:
                continue
            compile(source, self.name, "exec")
            old, patch = self.bytes[start:end].decode(), self._patch(start, end, new.encode(), everything)
            place = self.name, edit.task, first.lineno, edit.kind
            return Mutant(lesson, *place, old, new, source, patch, _meaning(tree))
        raise AssertionError(f"{self.name}:{first.lineno}: no text for {edit.kind}: {_texts(edit.new, 0)}")

    def _edited_tree(self, edit: _Edit) -> str:
        old = edit.old
        edit.swap_in(edit.new, len(old))
        try:
            return ast.dump(self.tree)
        finally:
            edit.swap_in(old, len(edit.new))

    def _patch(self, start: int, end: int, new: bytes, everything: str) -> tuple[str, str]:
        """The edit as [old, new] of whole lines; lines above join in until the text occurs once in the lesson."""
        first = max(n for n, begin in enumerate(self.line_starts) if begin <= start)
        stop = self.bytes.index(b"\n", end)
        while everything.count(self.bytes[self.line_starts[first] : stop].decode()) > 1:
            first -= 1
        begin = self.line_starts[first]
        changed = self.bytes[begin:start] + new + self.bytes[end:stop]
        return self.bytes[begin:stop].decode(), changed.decode()


def _leaves_unbound(function: ast.FunctionDef, block: list[ast.stmt], kind: str) -> bool:
    """Whether a name would be used that has no value (yet): a certain NameError, which is no test of the tests."""
    if kind not in (DROPPED, SWAPPED):
        return False
    moved = block[:1]
    users = (
        _names(block[1:], ast.Load)
        if kind == SWAPPED
        else _names([function], ast.Load) - _names(moved, ast.Load)
    )
    bound_elsewhere = _names([function], ast.Store) - _names(moved, ast.Store)
    arguments = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    return bool((_names(moved, ast.Store).keys() & users.keys()) - bound_elsewhere.keys() - arguments)


def _names(nodes: Iterable[ast.AST], context: type[ast.expr_context]) -> Counter[str]:
    return Counter(
        n.id
        for node in nodes
        for n in ast.walk(node)
        if isinstance(n, ast.Name) and isinstance(n.ctx, context)
    )


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except SyntaxError:
        return None


def _texts(nodes: list[ast.AST], column: int) -> list[str]:
    """Ways to write the nodes: as they are, and in parentheses where they stand in a larger expression."""
    written = f"\n{' ' * column}".join(
        ast.unparse(ast.fix_missing_locations(node)).replace("\n", f"\n{' ' * column}") for node in nodes
    )
    return [written] if isinstance(nodes[0], ast.stmt) else [written, f"({written})"]
