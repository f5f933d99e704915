"""The diagnosis: it names what it knows, says where to look, and never says a wrong name."""

import re

import pytest

from course.diagnosis import MAX_ALTERNATIVES, _Matching
from course.fingerprints import Bank, Sight
from course.outcomes import FAILED, PASSED, TODO, TestOutcome

# ------------------------------------------------------------------------------- the report, run as students do


def planted(toy, edit, *pairs):
    """The solution becomes the student's code, with texts replaced."""
    toy.course("adopt", "01")
    for old, new in pairs:
        edit(toy.skeleton, old, new)


SQUARE = ("return x * 2", "return x * x")
WRONG_ERROR = ("raise ValueError(f", "raise TypeError(f")


def test_known_mistake_is_named_with_its_reason_and_its_place(toy, edit):
    planted(toy, edit, SQUARE)
    result = toy.pytest()
    assert "Diagnosis: a known mistake" in result.out
    assert "toy-square · task 1.1 · optimizer.py:4 double" in result.out
    assert "    You squared." in result.out
    assert "toy-wrong-error" not in result.out
    assert "return x * 2" not in result.out  # the correction is not given away


def test_explain_shows_the_lines_and_chinese_is_chinese(toy, edit):
    planted(toy, edit, SQUARE)
    for result in (
        toy.pytest("--explain", "--lang", "zh"),
        toy.course("check", "01", "--explain", "--lang", "zh"),
    ):
        assert "诊断：这是一个已知的错误" in result.out
        assert "你算成了平方。" in result.out
        assert "-    return x * x" in result.out
        assert "+    return x * 2" in result.out
        assert "You squared." not in result.out


@pytest.mark.parametrize(
    ("lang", "heading"),
    [("en", "Diagnosis: two known mistakes at once"), ("zh", "诊断：同时有两个已知的错误")],
)
def test_two_mistakes_at_once_are_both_named(toy, edit, lang, heading):
    planted(toy, edit, SQUARE, WRONG_ERROR)
    result = toy.pytest("--lang", lang)
    assert heading in result.out
    assert "toy-square" in result.out
    assert "toy-wrong-error" in result.out


def test_mistake_is_named_while_another_task_is_unwritten(toy, edit):
    unwritten = '        raise NotImplementedError("task 1.2: refuse negative numbers")\n        raise'
    planted(toy, edit, SQUARE, ("        raise", unwritten))
    result = toy.pytest()
    assert "TODO  1.2" in result.out
    assert "toy-square · task 1.1" in result.out


@pytest.mark.parametrize(
    "new",
    [
        "return x * 2.5",
        "return x * x + (x == 4)",
        "return x * x if x == 3 else x * 2",
        "return x.nope",
        "return x * x *",
    ],
)
def test_unknown_mistake_gets_no_name_but_the_place_where_it_begins(toy, edit, new):
    planted(toy, edit, ("return x * 2", new))
    result = toy.pytest()
    assert "No diagnosis: no known mistake explains all of this." in result.out
    assert re.search(r"Begin with test_double_is_twice, where .*\n\s+(compared|raised) ", result.out)
    assert "toy-square" not in result.out


def test_unknown_mistake_beside_a_known_one_hides_both(toy, edit):
    planted(toy, edit, SQUARE, ("raise ValueError(f", "raise KeyError(f"))
    result = toy.pytest()
    assert "No diagnosis" in result.out
    assert "toy-square" not in result.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--course-seed", "3"], "it takes the default seed"),
        (["-k", "test_double_is_twice"], "it takes whole test files, and 1 tests were not run"),
        (["-x"], "it takes whole test files"),
    ],
)
def test_run_that_shows_too_little_gets_no_name(toy, edit, options, says):
    planted(toy, edit, SQUARE)
    result = toy.pytest(*options, str(toy.tests / "basic_test.py"))
    assert f"No diagnosis: {says}" in result.out
    assert "toy-square" not in result.out


def test_mistake_that_varies_from_run_to_run_gets_no_name(toy, edit):
    edit(toy.mistakes, 'says = "You squared."', 'varies = true\nsays = "You squared."')
    planted(toy, edit, SQUARE)
    assert "No diagnosis: no known mistake explains all of this." in toy.pytest().out


def test_changed_tests_get_no_name(toy, edit):
    planted(toy, edit, SQUARE)
    edit(toy.tests / "basic_test.py", "(3.0, 4.0)", "(3.0, 5.0)")
    assert "No diagnosis: the tests of this lesson have been changed" in toy.pytest().out


def test_mistakes_that_look_the_same_are_both_named(toy, edit):
    twin = '[[mistake]]\nid = "toy-power"\ntask = "1.1"\npatch = [["return x * 2", "return x**2"]]\n'
    twin += 'caught_by = ["test_double_is_twice"]\nsays = "To the power of two."\nsays_zh = "二次方。"\n\n'
    toy.mistakes.write_text(twin + toy.mistakes.read_text())
    assert "1 runs" in toy.course("build").out
    planted(toy, edit, SQUARE)
    result = toy.pytest()
    assert "One of these 2: the tests that ran cannot tell them apart." in result.out
    assert result.out.index("toy-square · task 1.1") > 0
    assert "To the power of two." in result.out


def test_passing_and_unwritten_runs_say_nothing_and_load_nothing(toy):
    for options in (["--impl", "solutions"], []):
        result = toy.cold(
            "pytest", "-s", *options, str(toy.tests / "basic_test.py"), python=("-X", "importtime")
        )
        assert "iagnosis" not in result.out
        assert "course.outcomes" in result.err
        for module in ("course.diagnosis", "course.fingerprints", "course.verdict", "rich"):
            assert f" {module}\n" not in result.err


def test_matrix_names_all_and_finds_a_name_that_is_missing(toy, edit):
    result = toy.course("mistakes", "--matrix", "--otherwise", "--pairs", "2")
    row = next(x for x in map(str.split, result.out.splitlines()) if x[:1] == ["lesson01_toy"])
    assert row[1:7] == ["2", "2", "2", "0", "0", "0"]
    assert " ".join(row[7:]) == "2 of 2 1 of 1 1 of 1 0 of 2"
    assert result.status == 0
    edit(toy.fingerprints, "9.0", "9.1")
    result = toy.course("mistakes", "--matrix")
    assert "alone toy-square: none" in result.out
    assert result.status == 1


# --------------------------------------------------------------------------------------------- the rules alone


def seen(value):
    return Sight("Mismatch", "", "", [["x", 1, value, 1.0]])


def diagnosed(fails, run, todo=()):
    """Names for a run {test: value, or None where it passes}, given {mistake: {test: value}}.

    The task of mistake "a1" is "a".
    """
    tests = sorted(run.keys() | set(todo))
    bank = Bank(tests, "", {n: {t: seen(v) for t, v in f.items()} for n, f in fails.items()}, {})
    outcomes = []
    for test in tests:
        value = run.get(test)
        state = TODO if test in todo else PASSED if value is None else FAILED
        outcome = TestOutcome("", "", "f", test.partition("::")[2], [], state, 0.0)
        if state == FAILED:
            outcome.raised, outcome.misses = "Mismatch", seen(value).misses
        outcomes.append(outcome)
    tasks = {name: name[0] for name in fails}
    return [match.ids for match in _Matching(bank, tasks, outcomes).named()]


T1, T2, T3 = "f::1", "f::2", "f::3"


@pytest.mark.parametrize(
    ("fails", "run", "names"),
    [
        ({"a1": {T1: 1.0}}, {T1: 1.0, T2: None}, [("a1",)]),
        ({"a1": {T1: 1.0}}, {T1: 1.0, T2: 2.0}, []),  # a failure that it does not explain
        ({"a1": {T1: 1.0, T2: 2.0}}, {T1: 1.0, T2: None}, []),  # a failure that should be there
        ({"a1": {T1: 1.0}, "a2": {T1: 1.0, T2: 2.0}}, {T1: 1.0, T2: 2.0}, [("a2",)]),
        ({"a1": {T1: 1.0}, "b1": {T2: 2.0}}, {T1: 1.0, T2: 2.0}, [("a1",), ("b1",)]),
        ({"a1": {T1: 1.0}, "a2": {T2: 2.0}}, {T1: 1.0, T2: 2.0}, []),  # two of one task
        ({"a1": {T1: 1.0}, "b1": {T2: 2.0}}, {T1: 1.0, T2: 2.0, T3: 3.0}, []),  # a failure of neither
        # What both touch is a mixture, and proves nothing; each needs a test of its own.
        (
            {"a1": {T1: 1.0, T3: 3.0}, "b1": {T2: 2.0, T3: 4.0}},
            {T1: 1.0, T2: 2.0, T3: 9.0},
            [("a1",), ("b1",)],
        ),
        ({"a1": {T1: 1.0, T3: 3.0}, "b1": {T3: 4.0}}, {T1: 1.0, T3: 9.0}, []),
        ({"a1": {T1: 1.0, T3: 3.0}, "b1": {T2: 2.0, T3: 4.0}}, {T1: 1.0, T2: 5.0, T3: 9.0}, []),
        # Alternatives on one side are listed.
        ({"a1": {T1: 1.0}, "a2": {T1: 1.0}, "b1": {T2: 2.0}}, {T1: 1.0, T2: 2.0}, [("a1", "a2"), ("b1",)]),
        # a1 goes with b1 or with c1: which task it is cannot be said.
        ({"a1": {T1: 1.0}, "b1": {T2: 2.0}, "c1": {T2: 2.0}}, {T1: 1.0, T2: 2.0}, []),
    ],
)
def test_names_explain_everything_or_there_are_none(fails, run, names):
    assert diagnosed(fails, run) == names


def test_a_long_list_of_alternatives_is_no_diagnosis():
    for count, named in ((MAX_ALTERNATIVES, 1), (MAX_ALTERNATIVES + 1, 0)):
        assert len(diagnosed({f"a{i}": {T1: 1.0} for i in range(count)}, {T1: 1.0})) == named


def test_tests_that_wait_for_another_task_are_left_out():
    assert diagnosed({"a1": {T1: 1.0, T2: 2.0}}, {T1: 1.0}, todo={T2}) == [("a1",)]
    assert diagnosed({"a1": {T2: 2.0}}, {T1: 1.0}, todo={T2}) == []
