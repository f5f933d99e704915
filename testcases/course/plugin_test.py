"""The pytest plugin, run as a student runs it: plain `pytest` in a fresh process."""

import json

import pytest


def test_skeleton_is_todo_with_task_file_and_line_from_root_and_from_inside(toy):
    for result in (toy.pytest(), toy.cold("pytest", "testcases", cwd=toy.tests.parent)):
        assert result.status == 1, result.text
        assert "1 skipped, 4 todo" in result.out
        assert "TODO  1.1  optimizer.py:7" in result.out
        assert "TODO  1.2  optimizer.py:13" in result.out
        assert "1 skipped: no CUDA device here" in result.out or "5 todo" in result.out
        assert "0 of 100 points" in result.out
        assert "Traceback" not in result.text
        assert "FAILED" not in result.out


def test_verbose_shows_the_todo_on_the_line_of_the_test(toy):
    result = toy.pytest("testcases/basic_test.py", "-v", cwd=toy.tests.parent)
    assert "test_double_is_twice TODO 1.1 optimizer.py:7" in result.out


def test_solutions_pass_and_the_report_holds_points_and_observations(toy):
    result = toy.pytest("--impl", "solutions", "--device", "cpu", "--report", "r.json")
    assert result.status == 0, result.text
    assert "100 of 100 points" in result.out
    report = json.loads((toy.root / "r.json").read_text())
    assert report["impl"] == "solutions"
    assert report["lessons"][0]["points"] == 100
    assert {test["outcome"] for test in report["tests"]} == {"passed"}
    observed = {test["test"]: test["observations"] for test in report["tests"]}
    assert observed["test_double_is_twice"] == [
        {"name": "2x", "step": 0, "value": 6.0},
        {"name": "2x", "step": 1, "value": 8.0},
    ]
    assert [row["name"] for row in observed["test_root_squared_is_the_number"]] == ["root of 2", "root²"]


def test_failure_shows_setup_expected_got_and_the_step(toy, edit):
    edit(toy.solution, "return x * 2", "return x * x")
    result = toy.pytest("--impl", "solutions", str(toy.tests / "basic_test.py"))
    assert result.status == 1
    lines = [line.split(maxsplit=1) for line in result.out.splitlines() if line.startswith("  ")]
    shown = {words[0]: words[1] for words in lines if len(words) == 2}
    assert shown["setup"] == "x = 3, then 4."
    assert shown["compared"] == "2x, step 0"
    assert shown["expected"] == "6.0"
    assert shown["got"] == "9.0"
    assert shown["test"].startswith("testcases/basic_test.py:9 in test_double_is_twice")
    assert "1 of 1 failed" in result.out
    assert "60 of 100 points" in result.out
    assert "course/expect.py" not in result.out


def test_crash_names_the_students_line_and_an_endless_loop_is_stopped(toy, edit):
    edit(toy.solution, "return x * 2", "return x.nope")
    edit(
        toy.solution,
        "    return x**0.5",
        "    while True:\n        try:\n            x += 1\n        except Exception:\n            pass",
    )
    result = toy.pytest("--impl", "solutions", "--device", "cpu")
    assert "raised     AttributeError: 'float' object has no attribute 'nope'" in result.out
    assert "optimizer.py:8 in double    return x.nope" in result.out
    assert "more than 1 s: a loop without an end?" in result.out
    assert "1.2     0/60   1 of 2 failed" in result.out
    assert "optimizer.py:18 in root" in result.out or "optimizer.py:20 in root" in result.out
    assert "site-packages" not in result.out


def test_syntax_error_in_the_students_file_is_told_with_its_line(toy, edit):
    edit(toy.skeleton, 'raise NotImplementedError("task 1.1: double the number")', "return x *")
    result = toy.pytest(str(toy.tests / "basic_test.py"))
    assert result.status == 1
    assert "SyntaxError" in result.out
    assert "optimizer.py:7    return x *" in result.out
    assert "importlib" not in result.out


def test_any_folder_can_be_tested(toy):
    alice = toy.root / "alice"
    (alice / "lesson01_toy").mkdir(parents=True)
    (alice / "lesson01_toy" / "optimizer.py").write_text("def double(x):\n    return x + x\n")
    result = toy.pytest("--impl", "alice", str(toy.tests / "basic_test.py"))
    assert "40 of 100 points" in result.out
    flat = toy.pytest("--impl", "alice/lesson01_toy", str(toy.tests / "basic_test.py"))
    assert "40 of 100 points" in flat.out
    assert "has no attribute 'root'" in flat.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--impl", "nowhere"], "--impl nowhere: no such folder"),
        (["--report", "no/such/r.json"], "--report no/such/r.json: its folder does not exist"),
    ],
)
def test_wrong_option_is_one_sentence(toy, arguments, says):
    result = toy.pytest(*arguments)
    assert result.status == 4
    assert says in result.err
    assert "Traceback" not in result.text


def test_random_numbers_depend_on_the_seed_and_on_nothing_else(toy):
    (toy.tests / "basic_test.py").write_text(
        "import random\nimport numpy\nimport pytest\nimport torch\n\n\n"
        '@pytest.mark.task("1.1")\ndef test_draw(lesson, observe, rng):\n    """Draws."""\n'
        '    lesson.optimizer.double(1)\n    observe("draws", [torch.randn(1, generator=rng).item(),'
        " torch.rand(1).item(), float(numpy.random.rand()), random.random()])\n"
    )
    draws = []
    for seed in ("1", "1", "2"):
        options = ("--impl", "solutions", "--device", "cpu", "--course-seed", seed, "--report", "r.json")
        toy.pytest(*options, str(toy.tests / "basic_test.py"))
        draws.append(json.loads((toy.root / "r.json").read_text())["tests"][0]["observations"][0]["value"])
    assert draws[0] == draws[1]
    assert all(first != third for first, third in zip(draws[0], draws[2], strict=True))


def test_other_tests_of_the_repository_are_left_alone(toy):
    (toy.root / "testcases" / "other_test.py").write_text("def test_other():\n    assert 1 == 2\n")
    result = toy.pytest("testcases/other_test.py")
    assert "assert 1 == 2" in result.out
    assert "points" not in result.out
    assert "1 failed" in result.out
