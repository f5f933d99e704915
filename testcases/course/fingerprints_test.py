"""Fingerprints: what a failing test keeps, how values compare, and that `course build` makes only what is old."""

import json

import pytest
import torch

from course import fingerprints
from course.fingerprints import Sight, alike
from course.mistakes import read_catalogue
from course.recorder import PATIENCE, brief, gap
from course.registry import lessons

# ---------------------------------------------------------------------------------------- values and their tolerance


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1.0, 1.00001),
        ([1.0, [2.0, "x"], 3], [1.00005, [2.0, "x"], 3]),
        (
            ["float32[9]", 1e-7, 5.0],
            ["float32[9]", -2e-7, 5.0],
        ),  # a sum that is all cancellation, beside its norm
        (["nan", "inf"], ["nan", "inf"]),
        (None, None),
    ],
)
def test_values_of_another_processor_are_alike(one, other):
    assert alike(one, other)
    assert alike(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1.0, 1.001),
        (1e-8, 2e-8),  # alone, a small number is what it is
        (["float32[9]", 1e-3, 5.0], ["float32[9]", -1e-3, 5.0]),
        (3, 4),
        (100000, 100001),  # whole numbers are counts
        (True, 1),
        (1, 1.0),
        ("nan", 1.0),
        ([1.0], [1.0, 1.0]),
        (["float32[2]"], ["float64[2]"]),
        (None, 0.0),
    ],
)
def test_values_of_another_formula_are_not_alike(one, other):
    assert not alike(one, other)
    assert not alike(other, one)


def test_what_is_kept_of_a_value_tells_values_apart_but_not_machines():
    long = torch.arange(100.0)
    assert brief(long) != brief(long.double())
    assert brief(long) != brief(long.view(10, 10))
    assert brief(long) != brief(long.flip(0))
    assert brief(torch.tensor([1.0, float("nan")])) == ["float32[2]", 1.0, "nan"]
    assert brief({"b": 1, "a": 2}) == brief({"a": 5, "b": 6}) != brief({"a": 5})
    assert brief([1, 2]) != brief([1, 3])
    assert brief([float("nan"), 1 / 3, True]) == ["list 3", "nan", 0.333333, True]
    assert brief("/tmp/a1/x.pt") == brief("/tmp/b2/x.pt")
    assert brief(object()) == brief(object()) == "object"
    assert gap(torch.ones(4), torch.zeros(4)) == 2.0
    assert gap(torch.ones(4), torch.zeros(3)) is None


@pytest.mark.parametrize(
    ("distance", "other", "same"),
    [
        (1e-4, 1.0002e-4, True),  # hundreds of units in the last place, and two more
        (1e-4, 1.01e-4, False),
        (1.2e-7, 2.4e-7, False),  # one unit, and two: another order of operations
        (1.2e-7, 1.2e-7, True),
        (0.5, 0.50001, True),
        (0.5, None, False),
    ],
)
def test_distances_are_compared_in_units_of_the_last_place(distance, other, same):
    one, two = (Sight("Mismatch", "", "", [["x", 1, ["float32[1]", 1.0], d]]) for d in (distance, other))
    assert one.same(two) is same
    assert two.same(one) is same


def test_a_test_cut_short_by_an_unwritten_task_agrees_with_what_came_first():
    full = Sight("Mismatch", "", "", [["x", 1, 2.0, 1.0], ["x", 2, 3.0, 1.0]])
    assert full.same(Sight("Mismatch", "", "todo", full.misses[:1]))
    assert not full.same(Sight("Mismatch", "", "", full.misses[:1]))
    assert not full.same(Sight("Mismatch", "", "todo", [["x", 1, 2.5, 1.0]]))
    assert not full.same(Sight("KeyError", "step", "todo", []))


# ------------------------------------------------------------------------------------------- what a test keeps


def test_going_on_after_a_failed_comparison_shows_the_first_and_keeps_the_next(toy, edit):
    steps = "(3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)"
    edit(toy.tests / "basic_test.py", "(3.0, 4.0)", steps)
    edit(toy.solution, "return x * 2", "return x * x")
    options = ("--impl", "solutions", "--report", "r.json")
    result = toy.pytest(*options, str(toy.tests / "basic_test.py"))
    (row, other) = json.loads((toy.root / "r.json").read_text())["tests"]
    assert (
        row["misses"]
        == [["2x", i, x * x, x * x - 2 * x] for i, x in enumerate((3.0, 4.0, 5.0, 6.0))][:PATIENCE]
    )
    assert (row["raised"], row["after"], other["misses"]) == ("Mismatch", "", [])
    assert "compared  2x, step 0" in result.out
    assert "compared  2x, step 1" not in result.out
    assert "testcases/basic_test.py:9 in test_double_is_twice" in result.out


@pytest.mark.parametrize(
    ("then", "after"),
    [
        ('raise NotImplementedError("task 1.2: refuse")', "todo"),
        ("raise KeyError(x)", "KeyError"),
        ("while True: pass", "TimeLimitExceeded"),
    ],
)
def test_what_comes_of_going_on_is_no_excuse(toy, edit, then, after):
    edit(toy.solution, "return x * 2", f"if x == 4:\n        {then}\n    return x * x")
    path = toy.tests / "basic_test.py"
    edit(path, '@pytest.mark.task("1.1")', '@pytest.mark.limit(1)\n@pytest.mark.task("1.1")')
    result = toy.pytest("--impl", "solutions", "--report", "r.json", str(path))
    row = json.loads((toy.root / "r.json").read_text())["tests"][0]
    assert (row["outcome"], row["raised"], row["after"]) == ("failed", "Mismatch", after)
    assert "expected  6.0" in result.out


def test_an_exception_keeps_the_function_that_it_came_out_of(toy, edit):
    edit(toy.solution, "return x * 2", "return [y.nope for y in [x]][0]")
    toy.pytest("--impl", "solutions", "--report", "r.json", str(toy.tests / "basic_test.py"))
    row = json.loads((toy.root / "r.json").read_text())["tests"][0]
    assert (row["raised"], row["crashed_in"], row["misses"]) == ("AttributeError", "double", [])


# -------------------------------------------------------------------------------------- made, and made again


def test_build_keeps_a_line_for_each_failing_test(toy):
    table = json.loads(toy.fingerprints.read_text())
    assert set(table["mistakes"]) == {"toy-square", "toy-wrong-error"}
    assert len(table["tests"]) == 4
    assert table["mistakes"]["toy-wrong-error"]["fails"] == {
        "basic_test::test_root_refuses_negative_numbers": [
            "Mismatch",
            "",
            "",
            [["the error raised", None, "TypeError", None]],
        ]
    }
    lines = toy.fingerprints.read_text().splitlines()
    assert (
        sum("test_double_is_twice" in line for line in lines) == 2
    )  # in the list of tests, and where it fails


@pytest.mark.parametrize(
    ("file", "old", "new", "runs"),
    [
        ("solution", '"""A toy lesson."""', '"""A toy lesson."""\n# a remark', 0),
        ("solution", "return x**0.5", "return pow(x, 0.5)", 2),
        ("mistakes", "return x * x", "return x * x * 1", 1),
        ("mistakes", "You squared.", "You squared it.", 0),
        ("basic", "(3.0, 4.0)", "(3.0, 5.0)", 2),
    ],
)
def test_build_runs_what_is_old_and_check_finds_it(toy, edit, file, old, new, runs):
    paths = {"solution": toy.solution, "mistakes": toy.mistakes, "basic": toy.tests / "basic_test.py"}
    edit(paths[file], old, new)
    toy.skeleton.unlink()  # it carries the remark, which is not the point here
    if runs:
        says = f"lesson01_toy.json: {runs} are old or missing"
        assert says in toy.course("build", "--check").err
    result = toy.course("build")
    assert ("runs" in result.out) == bool(runs)
    assert not runs or f"lesson01_toy.json: {runs} runs" in result.out
    assert toy.course("build", "--check").status == 0
    assert "runs" not in toy.course("build").out


def test_fingerprint_of_a_mistake_that_is_gone_is_dropped(toy):
    head, _, tail = toy.mistakes.read_text().partition('[[mistake]]\nid = "toy-wrong-error"')
    toy.mistakes.write_text(head + tail[tail.index("[[variant]]") :])
    assert "1 are old or missing (toy-wrong-error" in toy.course("build", "--check").err
    toy.course("build")
    assert set(json.loads(toy.fingerprints.read_text())["mistakes"]) == {"toy-square"}


def test_damaged_file_is_one_sentence(toy, edit):
    edit(toy.fingerprints, '"mistakes"', '"mistake"')
    for command in (("build",), ("build", "--check")):
        result = toy.course(*command)
        assert "lesson01_toy.json is damaged" in result.err
        assert "Traceback" not in result.text


# ------------------------------------------------------------------------------------------ of this repository


@pytest.mark.parametrize("lesson", lessons(), ids=lambda lesson: lesson.name)
def test_committed_fingerprints_are_small_and_of_no_machine(lesson):
    text = fingerprints.path_of(lesson).read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert "/tmp" not in text
    assert " at 0x" not in text


def test_a_run_today_sees_what_was_recorded():
    """The first mistake of each stage, all tests, in a fresh process."""
    chosen = [next(x for x in lessons() if x.name.startswith(name)) for name in ("lesson02", "lesson06")]
    for lesson in chosen:
        bank = fingerprints.read_bank(lesson)
        entry = read_catalogue(lesson).mistakes[0]
        ((_, outcomes),) = fingerprints.observe(lesson, [entry])
        now = fingerprints.sights(outcomes)
        assert now.keys() == bank.fails[entry.id].keys()
        assert all(sight.same(bank.fails[entry.id][test]) for test, sight in now.items())
