"""Random mutants: which slips are made, and how they are drawn."""

import ast
import random

import pytest

from course import mutants
from course.mistakes import read_catalogue
from course.mutants import draw, meaning, write_mutant
from course.mutation_kinds import expression_changes, statement_changes
from course.registry import find_lesson
from course.skeleton import find_regions

# ------------------------------------------------------------------------------------------------ kinds of slips


def changed(source: str) -> set[str]:
    """What the expression, `parent.field` of a small statement, may become."""
    statement = ast.parse(source).body[0]
    field = "test" if isinstance(statement, ast.If) else "value"
    node = getattr(statement, field)
    return {ast.unparse(new) for _, new in expression_changes(node, statement, field)}


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("x = a - b", {"a + b", "a", "b"}),
        ("x = a @ b", {"a * b", "a", "b"}),
        ("x = a and b", {"a or b", "a", "b"}),
        ("x = a < b", {"a <= b", "a >= b"}),
        ("x = a is not b", {"a is b"}),
        ("x = -a", {"a"}),
        ("if not a: pass", {"a"}),
        ("if a == b: pass", {"a != b"}),
        ("if a(b): pass", {"not a(b)", "b"}),
        ("x = 0", {"1", "-1"}),
        ("x = 3", {"2", "4", "6", "-3"}),
        ("x = 0.5", {"1.0", "-0.5"}),
        ("x = True", {"False"}),
        ("x = None", {"0"}),
        ("x = 'text'", set()),
        ("x = f(a, b)", {"f(b, a)", "f(a)"}),
        ("x = f(a, k=b, l=c)", {"f(a, k=b)", "f(a, l=c)", "f(a, k=c, l=b)"}),
        ("x = max(a, b)", {"max(b, a)", "max(a)", "a", "b"}),
        ("x = a.clone()", {"a"}),
        ("x = a[b:c]", {"a[:c]", "a[b:]", "a[b + 1:c]", "a[b:c - 1]"}),
        ("x = {'a': 1, **b}", {"{'a': 1}", "{**b}"}),
    ],
)
def test_expressions_slip_in_every_way_that_is_meant(source, wanted):
    assert changed(source) == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("add_", {"sub_"}),
        ("mul", {"div", "mul_"}),
        ("amin", {"amax"}),
        ("eval", {"train"}),
        ("keys", {"values"}),
        ("update", set()),
    ],
)
def test_methods_are_replaced_by_their_siblings(name, wanted):
    call = ast.parse(f"a.{name}(b)").body[0].value
    assert {new.attr for _, new in expression_changes(call.func, call, "func")} == wanted


def block_changes(source: str) -> set[str]:
    loop = ast.parse(source).body[0]
    found = set()
    for _, first, end, new in statement_changes(loop.body, isinstance(loop, ast.For)):
        body = [*loop.body[:first], *new, *loop.body[end:]]
        found.add("; ".join(" ".join(ast.unparse(ast.fix_missing_locations(s)).split()) for s in body))
    return found


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("for i in a:\n f()\n g()", {"pass; g()", "f(); pass", "g(); f()", "f(); g(); break"}),
        ("for i in a:\n continue", {"pass", "break"}),
        ("if a:\n x += 1", {"pass", "x -= 1", "x = 1"}),
        ("if a:\n return b", {"pass", "return"}),
        ("if a:\n x.add_(b)", {"pass", "x.add(b)"}),
        ("if a:\n x.unscale_(b)", {"pass"}),
        ("if a:\n if b: f()", {"pass", "if True: f()"}),
        ("if a:\n with b: f()", {"pass", "if True: f()"}),
        ("if a:\n try: f()\n finally: g()", {"pass", "if True: f()"}),
        ("if a:\n def f(): pass", set()),
    ],
)
def test_statements_slip_in_every_way_that_is_meant(source, wanted):
    assert block_changes(source) == wanted


# -------------------------------------------------------------------------------------------------------- drawing


@pytest.fixture(scope="module")
def drawn():
    return draw(find_lesson("03"), 10_000, 1)


def test_same_seed_draws_the_same_mutants_and_another_seed_others():
    lesson = find_lesson("04")
    first = [m.id for m in draw(lesson, 14, 1)]
    assert first == [m.id for m in draw(lesson, 14, 1)]
    assert first != [m.id for m in draw(lesson, 14, 2)]


def test_mutants_are_spread_over_tasks_and_kinds():
    few = draw(find_lesson("04"), 21, 1)
    assert sorted({m.task for m in few}) == [f"4.{n}" for n in range(1, 8)]
    # 3 each; an entry of the catalogue that is passed over is another task's gain
    assert all(2 <= sum(m.task == task for m in few) <= 4 for task in {m.task for m in few})
    assert len({m.kind for m in few}) >= 7


def test_mutants_differ_from_the_solution_inside_a_region_of_their_task_only(drawn):
    lesson = find_lesson("03")
    sources = {path.name: path.read_text(encoding="utf-8") for path in lesson.solution_files()}
    for mutant in drawn:
        before, after = sources[mutant.file].splitlines(), mutant.source.splitlines()
        top = next(n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
        tail = next(n for n, (a, b) in enumerate(zip(before[::-1], after[::-1], strict=False)) if a != b)
        regions = find_regions(sources[mutant.file], mutant.file)
        assert any(
            r.task == mutant.task and r.begin <= top and len(before) - tail < r.end for r in regions
        ), mutant.id


def test_mutants_are_all_different_and_none_is_in_the_catalogue(drawn, monkeypatch):
    lesson = find_lesson("03")
    said = [(m.file, m.meaning) for m in drawn]
    assert len(set(said)) == len(said)
    sources = {path.name: path.read_text(encoding="utf-8") for path in lesson.solution_files()}
    catalogue = read_catalogue(lesson)
    known = set()
    for entry in catalogue.mistakes + catalogue.variants:
        changed = dict(sources)
        for patch in entry.patches:
            changed[patch.file] = changed[patch.file].replace(patch.old, patch.new)
        known |= {(file, meaning(text)) for file, text in changed.items() if text != sources[file]}
    assert not known & set(said)
    monkeypatch.setattr(mutants, "_catalogue", lambda lesson: [])
    everything = {(m.file, m.meaning) for m in draw(lesson, 10_000, 1)}
    assert known & everything, "this lesson's catalogue has nothing that could have been drawn: use another"


def test_written_mutant_is_the_lesson_with_the_slip(drawn, tmp_path):
    lesson, mutant = find_lesson("03"), random.Random(1).choice(drawn)
    write_mutant(mutant, tmp_path)
    folder = tmp_path / lesson.path
    assert {p.name for p in folder.iterdir()} == {p.name for p in lesson.solution_files()}
    different = [p.name for p in lesson.solution_files() if (folder / p.name).read_text() != p.read_text()]
    assert different == [mutant.file]


PRECEDENCE = '''"""Bytes and characters: η ← η·(α + β)."""


def f(a, b, c):
    # TODO 1.1 η, in a comment
    # BEGIN SOLUTION
    η = a * (b + c) / c + "η".count("η")
    if a:
        return -η
    elif b:
        return η
    raise ValueError(f"{a + b}")
    # END SOLUTION


def g(x):
    y = x
    # TODO 1.1 η, in a comment
    # BEGIN SOLUTION
    η = y + 1
    return η
    # END SOLUTION
'''


@pytest.fixture
def slips(tmp_path):
    """All mutants of PRECEDENCE."""
    (tmp_path / "f.py").write_text(PRECEDENCE, encoding="utf-8")
    file = mutants._File(tmp_path / "f.py")
    return [file.mutant(find_lesson("01"), edit, file.source) for edit in file.edits()]


@pytest.mark.parametrize(
    "line",
    [
        'η = a * (b - c) / c + "η".count("η")',
        'η = (a + (b + c)) / c + "η".count("η")',
        'η = a * (b) / c + "η".count("η")',
        "η = a * (b + c) / c - 'η'.count('η')",
    ],
)
def test_parentheses_and_letters_of_two_bytes_do_not_shift_a_slip(slips, line):
    assert any(f"    {line}\n" in mutant.source for mutant in slips)


def test_messages_definitions_and_lone_elifs_are_left_alone(slips):
    sources = [mutant.source for mutant in slips]
    assert all("{a + b}" in source or "pass" in source for source in sources)
    assert all("\n    y = x\n" in source for source in sources)
    # `η` would have no value in g: a certain crash tells nothing about the tests.
    assert not any("pass\n    return η" in source or "return η\n    η = " in source for source in sources)
    assert any("pass\n    # END" in source for source in sources)


def test_mutants_say_on_whole_lines_what_they_change(slips):
    assert PRECEDENCE.count("    return η") == 2  # so that a line alone does not always tell which
    for mutant in slips:
        old, new = mutant.patch
        assert PRECEDENCE.count(old) == 1, mutant.id
        assert PRECEDENCE.replace(old, new) == mutant.source, mutant.id
