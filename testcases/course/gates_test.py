"""The gates: each finds the hole that it is there for."""

import pytest


def holes(result):
    return [line for line in result.out.splitlines() if line.startswith("HOLE")]


def test_table_counts_tests_mistakes_and_variants(toy):
    result = toy.course("gates")
    # The toy lesson is too small for the floors; nothing else is wrong with it.
    assert [line.split(": ", 1)[1] for line in holes(result)] == [
        "2 mistakes, at least 8 are wanted",
        "1 variants, at least 3 are wanted",
        "4 tests, at least 16 are wanted",
    ]
    (row,) = (line.split() for line in result.out.splitlines() if line.split()[:1] == ["lesson01_toy"])
    assert row[1:] == ["4", "2", "4/4", "4/4", "2/2", "2/2", "1/1", "1/1"]
    assert result.status == 1


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("solution", "return x * 2", "return x * 2 + 1", "solution: test_double_is_twice is failed"),
        (
            "basic",
            "    for step",
            "    return\n    for step",
            "skeleton: test_double_is_twice is passed",
        ),
        (
            "basic",
            "    for step",
            "    assert lesson.optimizer.nothing\n    for step",
            "skeleton: test_double_is_twice is failed",
        ),
        (
            "mistakes",
            "return x * x",
            "return 2 * x",
            "mistake toy-square: test_double_is_twice does not catch it",
        ),
        (
            "mistakes",
            "return x * x",
            "return x.nope",
            "mistake toy-square: test_double_is_twice ends with AttributeError, not with",
        ),
        ("mistakes", "return x + x", "return x + x + x", "variant:toy-sum: test_double_is_twice is failed"),
        ("mistakes", "return x + x", "return x +", "variant:toy-sum: test_double_is_twice is failed"),
        (
            "fingerprints",
            "0,9.0,3.0",
            "0,9.1,3.0",
            "mistake toy-square: basic_test::test_double_is_twice does not see what the fingerprint says",
        ),
        ("agreement", "== 4", "== 5", "agreement: test_lesson01_double_agrees failed"),
        ("agreement", "def test_lesson01", "def test_lesson02", "no test_lesson01_… in"),
        (
            "advanced",
            "    observe",
            "    import os\n    os._exit(3)\n    observe",
            "no test ran",
        ),
    ],
)
def test_gate_finds(toy, file, old, new, says):
    path = {
        "solution": toy.solution,
        "basic": toy.tests / "basic_test.py",
        "advanced": toy.tests / "advanced_test.py",
        "mistakes": toy.mistakes,
        "fingerprints": toy.fingerprints,
        "agreement": toy.root / "testcases" / "agreement" / "toy_test.py",
    }[file]
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    if file == "solution":
        toy.mistakes.write_text(toy.mistakes.read_text().replace("return x * 2", "return x * 2 + 1"))
    result = toy.course("gates")
    assert result.status == 1, result.text
    assert any(says in line for line in holes(result)), result.text


def test_gate_compares_no_values_of_a_mistake_that_varies(toy, edit):
    edit(toy.fingerprints, "0,9.0,3.0", "0,9.1,3.0")
    edit(toy.mistakes, 'says = "You squared."', 'varies = true\nsays = "You squared."')
    assert "does not see what the fingerprint says" not in toy.course("gates").out
    edit(toy.fingerprints, 'basic_test::test_double_is_twice": [', 'basic_test::test_other": [')
    assert "test_double_is_twice does not see what the fingerprint says" in toy.course("gates").out
