"""`course build` and `course build --check`: drift is found, edits are kept."""

import subprocess

import pytest

from course.pages import code_blocks, console_blocks

UNSOLVED = 'raise NotImplementedError("task 1.1: double the number")'


def test_built_course_passes_its_check_and_sha256sum_agrees(toy):
    result = toy.course("build", "--check")
    assert result.status == 0, result.text
    done = subprocess.run(
        ["sha256sum", "-c", "skeletons.sha256"],
        cwd=toy.root / "tutorial",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_changed_solution_is_rebuilt_but_an_edited_skeleton_is_kept(toy, edit):
    edit(toy.solution, "Return 2x.", "Return twice x.")
    stale = toy.course("build", "--check")
    assert stale.status == 1
    assert "optimizer.py is older than its solution" in stale.err
    assert toy.course("build").status == 0
    assert "Return twice x." in toy.skeleton.read_text()
    edit(toy.skeleton, UNSOLVED, "return 'mine'")
    assert "was edited by hand" in toy.course("build", "--check").err
    edit(toy.solution, "Return twice x.", "Return 2x.")
    kept = toy.course("build")
    assert kept.status == 1
    assert "left alone" in kept.err
    assert "return 'mine'" in toy.skeleton.read_text()
    assert toy.course("build", "--force").status == 0
    assert UNSOLVED in toy.skeleton.read_text()
    assert toy.course("build", "--check").status == 0


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        (
            "solution",
            "# TODO 1.1 double the number",
            "# TODO 1.1 double it",
            "lesson.toml says 'double the number'",
        ),
        ("solution", "# TODO 1.1 double", "# TODO 1.3 double", "task 1.3 is not in lesson01_toy/lesson.toml"),
        (
            "solution",
            "    # END SOLUTION\n\n\ndef root",
            "\n\ndef root",
            "optimizer.py:13: TODO 1.2 inside the region that begins at line 7",
        ),
        ("basic", '@pytest.mark.task("1.1")\n', "", "test_double_is_twice has no @pytest.mark.task"),
        ("basic", '@pytest.mark.task("1.1")', '@pytest.mark.task("1.9")', "names task 1.9"),
        ("basic", '@pytest.mark.task("1.1")', '@pytest.mark.task("1.2")', "task 1.1 has no basic test"),
        ("basic", '    """x = -1."""\n', "", "test_root_refuses_negative_numbers has no docstring"),
        ("mistakes", "return x * 2", "return x * 3", "must occur once in the solution, found nowhere"),
        ("mistakes", 'task = "1.1"', 'task = "1.2"', "is outside the regions of task 1.2"),
        ("mistakes", 'says = "You squared."\n', "", "`says` missing or empty"),
        ("mistakes", '"test_double_is_twice"', '"test_gone"', "no test 'test_gone'"),
        ("mistakes", 'id = "toy-sum"', 'id = "toy-square"', "ids that appear twice: toy-square"),
        ("readme", "1.1 and 1.2", "1.1", "task 1.2 is not in the task table"),
        ("readme", "## Run it", "## Run", "second-level headings must be"),
        ("readme", "# Toy", "# Toy\n[gone](gone.md)", "gone.md leads nowhere"),
        ("readme", "# Toy", "# Toy\n```bash\nls\n```", "1 and 0 code blocks"),
        ("readme", "# Toy", "# Toy\n| a |\n", "1 and 0 tables"),
    ],
)
def test_check_finds(toy, edit, file, old, new, says):
    path = {
        "solution": toy.solution,
        "basic": toy.tests / "basic_test.py",
        "mistakes": toy.mistakes,
        "readme": toy.tests.parent / "README.md",
    }[file]
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    result = toy.course("build", "--check")
    assert result.status in (1, 2)
    assert says in result.err
    assert "Traceback" not in result.err


def test_check_finds_stray_and_missing_files(toy):
    (toy.tests.parent / "extra.py").write_text("x = 1\n")
    toy.skeleton.unlink()
    result = toy.course("build", "--check")
    assert "extra.py has no solution: a stray file" in result.err
    assert "optimizer.py is missing: run `course build`" in result.err


def test_code_blocks_of_a_page():
    page = "a\n```console\n$ python -m x\n1\n2\n```\n```text\nbox\n```\n"
    assert code_blocks(page) == [("console", "$ python -m x\n1\n2\n"), ("text", "")]
    assert console_blocks(page) == [("python -m x", "1\n2\n")]
