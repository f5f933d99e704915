"""Runs of random mutants: how they are judged, what the lists of equivalent ones may say, and the limits."""

import os
import tempfile

import pytest

from course import equivalents
from course.equivalents import Known, read_known
from course.errors import CourseError
from course.mutants import draw
from course.mutation_run import CAUGHT, SURVIVED, _confined, _judge
from course.outcomes import FAILED, PASSED, SKIPPED, TIMEOUT, TODO, TestOutcome
from course.registry import find_lesson, lessons
from course.trials import Trial, TrialResult

# ---------------------------------------------------------------------------------------------------- the lists


def test_every_listed_mutant_still_applies_to_the_solutions():
    assert any(read_known(lesson).equivalent for lesson in lessons())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[equivalent]]\npatch = [['no such line', 'x']]\nbecause = 'x'", "nowhere"),
        ("[[equivalent]]\npatch = [['alpha=-lr', 'alpha=-lr * 1']]\nbecause = ''", "because"),
        ("[[equivalent]]\npatch = [['alpha=-lr', 'alpha=']]\nbecause = 'x'", "does not compile"),
        (
            "[[equivalent]]\npatch = [['alpha=-lr)', 'alpha=-lr)'], ['a', 'b']]\nbecause = 'x'",
            "one [old, new]",
        ),
        ("[[same]]\npatch = [['alpha=-lr', 'alpha=lr']]\nbecause = 'x'\nmistake = 'none'", "'none'"),
        ("[[equal]]\npatch = []", "unknown tables equal"),
        ("[[equivalent", "lesson01_sgd.toml"),
    ],
)
def test_wrong_lists_are_refused_with_a_reason(text, says, tmp_path, monkeypatch):
    (tmp_path / "lesson01_sgd.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(equivalents, "FOLDER", tmp_path)
    with pytest.raises(CourseError, match=says.replace("[", r"\[")):
        read_known(find_lesson("01"))


# --------------------------------------------------------------------------------------------------------- runs


def run(toy, *arguments):
    """`course mistakes --mutants`, all mutants of the toy lesson."""
    return toy.course("mistakes", "--mutants", "1000", *arguments)


def row(result):
    """mutants, equivalent, caught, survived, named rightly, named wrongly."""
    (line,) = (line for line in result.out.splitlines() if line.split()[:1] == ["lesson01_toy"])
    return [int(cell) for cell in line.split()[1:]]


def listed(toy, text):
    path = toy.root / "testcases" / "mistakes" / "equivalent" / "lesson01_toy.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


HOLES = """[[equivalent]]
patch = [["if x < 0:", "if x <= 0:"]]
because = "0 is in no test"

[[equivalent]]
patch = [["if x < 0:", "if  x < 1 :"]]
because = "nor is anything between 0 and 1"
"""


def test_run_counts_what_survives_and_believes_the_list(toy):
    result = run(toy)
    count, equivalent, caught, survived, *names = row(result)
    assert (equivalent, survived, names) == (0, 2, [0, 0])
    assert caught == count - 2 > 15
    assert result.status == 1
    assert "task 1.2, comparison changed: `x < 0` → `x <= 0`" in result.out
    assert "patch = [['''    if x < 0:''', '''    if x < 1:''']]" in result.out
    listed(toy, HOLES)
    result = run(toy)
    assert row(result) == [count, 2, caught, 0, 0, 0]
    assert result.status == 0, result.text


def test_run_finds_a_listed_mutant_that_a_test_catches(toy):
    listed(toy, HOLES + '[[equivalent]]\npatch = [["x * 2", "x * 3"]]\nbecause = "wrong"\n')
    result = run(toy)
    assert "MISLISTED lesson01_toy optimizer.py:8" in result.out
    assert "test_double_is_twice" in result.out
    assert result.status == 1


def test_run_takes_a_name_for_wrong_until_somebody_has_looked(toy, edit):
    edit(toy.mistakes, "return x * x", "return x + x + x")
    assert toy.course("build").status == 0
    listed(toy, HOLES)
    result = run(toy)
    assert row(result)[4:] == [0, 1]
    assert (
        "WRONG NAME lesson01_toy optimizer.py:8 task 1.1, constant changed: `2` → `3`: toy-square"
        in result.out
    )
    assert result.status == 1
    listed(
        toy,
        HOLES + '[[same]]\nmistake = "toy-square"\npatch = [["x * 2", "x * 3"]]\nbecause = "x+x+x is 3x"\n',
    )
    result = run(toy)
    assert row(result)[4:] == [1, 0]
    assert result.status == 0, result.text


def test_run_refuses_a_solution_that_fails_and_fingerprints_that_are_old(toy, edit):
    edit(toy.tests / "basic_test.py", "x + x, source", "x + x + 1, source")
    result = run(toy)
    assert result.status != 0
    assert "the fingerprints are old: lesson01_toy" in result.err
    toy.course("build")
    result = run(toy)
    assert result.status != 0
    assert "the solution itself does not pass here: test_double_is_twice" in result.err


@pytest.mark.parametrize(
    ("outcomes", "state", "only_slow"),
    [
        ([PASSED, SKIPPED], SURVIVED, False),
        ([PASSED, FAILED, TIMEOUT], CAUGHT, False),
        ([PASSED, TODO], CAUGHT, False),
        ([PASSED, TIMEOUT], CAUGHT, True),
        ([], CAUGHT, True),  # it crashed the whole run, or had to be stopped
    ],
)
def test_a_mutant_is_caught_by_whatever_does_not_pass(outcomes, state, only_slow):
    lesson = find_lesson("01")
    (mutant,) = draw(lesson, 1, 1)
    rows = [
        TestOutcome("", lesson.name, "basic_test", f"test_{n}", [mutant.task], outcome, 0.0)
        for n, outcome in enumerate(outcomes)
    ]
    judged = _judge(Known(), mutant, TrialResult(Trial("", lesson, lesson.solution_folder), rows))
    assert (judged.state, judged.only_slow, judged.names) == (state, only_slow, ())


def test_files_that_a_mutant_writes_do_not_stay(toy, edit):
    edit(toy.solution, "    return x * 2", "    open('litter.txt', 'w').close()\n    return x * 2")
    assert toy.course("build", "--force").status == 0
    (toy.root / "litter.txt").unlink(missing_ok=True)
    assert row(run(toy))[2] > 15
    assert not list(toy.root.rglob("litter.txt"))


def test_limits_hold_inside_and_are_gone_afterwards(tmp_path):
    resource = pytest.importorskip("resource")

    def now():
        limits = [resource.getrlimit(which) for which in (resource.RLIMIT_FSIZE, resource.RLIMIT_DATA)]
        return os.getcwd(), tempfile.gettempdir(), os.environ.get("TMPDIR"), limits

    before = now()
    with _confined(tmp_path):
        assert os.getcwd() == tempfile.gettempdir() == os.environ["TMPDIR"] == str(tmp_path / "work")
        with open("large", "wb") as file, pytest.raises(OSError, match="large"):
            file.truncate(65 << 20)
        with pytest.raises(MemoryError):
            bytearray(5 << 30)
    assert now() == before
