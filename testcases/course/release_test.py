"""`course release`: a copy for students that works, and that gives nothing away."""

import json
import shutil
import tomllib
import zipfile

import pytest

from course.leaks import ALLOWED, code_of, find_leaks, solution_lines, squeeze
from course.registry import ROOT
from course.release import LEFT_OUT, chosen_files
from testcases.course.conftest import TOY, ToyRepo
from testcases.course.screen import Screen

SOLVED, UNSOLVED = "return x * 2", 'raise NotImplementedError("task 1.1: double the number")'
SQUARED = "return x * x"


@pytest.fixture(scope="module")
def built_release(built_toy, tmp_path_factory):
    """The toy course's release for students, made once; tests that write get a copy."""
    target = tmp_path_factory.mktemp("release") / "students"
    made = built_toy.course("release", str(target))
    assert made.status == 0, made.text
    assert "none found" in made.out
    return ToyRepo(target, built_toy.server)


@pytest.fixture
def released(built_release, tmp_path):
    """A copy of the release: nothing in it hangs on the place where it was made."""
    shutil.copytree(
        built_release.root, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__", ".course")
    )
    return ToyRepo(tmp_path / "copy", built_release.server)


def texts(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path: path.read_text(encoding="utf-8") for path in files}


# ------------------------------------------------------------------------------------------------ what is in it


def test_release_has_no_solutions_and_no_patches(toy, built_release):
    released = built_release
    assert not (released.root / "solutions").exists()
    assert not (released.root / "testcases" / "agreement").exists()
    assert not (released.root / ".git").exists()
    for path, text in texts(released.root).items():
        assert "return x * 2" not in text, path
        assert "# BEGIN SOLUTION\n" not in text, path
    catalogue = tomllib.loads(released.mistakes.read_text(encoding="utf-8"))
    assert set(catalogue) == {"mistake"}
    full = tomllib.loads(toy.mistakes.read_text(encoding="utf-8"))["mistake"]
    for mine, theirs in zip(catalogue["mistake"], full, strict=True):
        assert mine.pop("places")[0] in (["optimizer.py", "double"], ["optimizer.py", "root"])
        assert mine == {key: value for key, value in theirs.items() if key != "patch"}


def test_release_has_fresh_skeletons_whatever_stands_in_tutorial(toy, tmp_path, edit):
    fresh = toy.skeleton.read_text()
    edit(toy.skeleton, UNSOLVED, SOLVED)
    assert toy.course("release", str(tmp_path / "students")).status == 0
    students = ToyRepo(tmp_path / "students", toy.server)
    assert students.skeleton.read_text() == fresh
    assert "not started" in students.course("status").out


def test_zip_holds_the_same_files(toy, built_release, tmp_path):
    assert toy.course("release", str(tmp_path / "one.zip")).status == 0
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        packed = {name.removeprefix("one/"): archive.read(name) for name in archive.namelist()}
        assert {info.date_time[0] for info in archive.infolist()} == {2020}  # nothing of today is in it
    root = built_release.root
    files = [path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert packed == {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_links_to_what_is_left_out_become_text(toy, tmp_path):
    page = toy.root / "README.md"
    page.write_text(
        "# Toy\n\nSee [the answer](solutions/x.md), [code](course/lang.py), [x](https://example.org).\n",
        "utf-8",
    )
    made = toy.course("release", str(tmp_path / "students"))
    assert "1 links to what is left out are plain text now" in made.out
    assert (tmp_path / "students" / "README.md").read_text("utf-8") == (
        "# Toy\n\n> This is a student release, without solutions. A command that needs them says so.\n\n"
        "See the answer, [code](course/lang.py), [x](https://example.org).\n"
    )


def test_files_that_git_does_not_know_stay_out(toy, tmp_path):
    import subprocess

    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", "-C", str(toy.root), *command], check=True)
    (toy.root / "docs" / "grades.md").write_text("Ada 100\n")
    made = toy.course("release", str(tmp_path / "students"))
    assert made.status == 0, made.text
    assert "1 files that git does not know were left out" in made.out
    assert not (tmp_path / "students" / "docs" / "grades.md").exists()
    assert not (tmp_path / "students" / ".git").exists()
    assert (tmp_path / "students" / "docs" / "mistakes" / "README.md").is_file()


# -------------------------------------------------------------------------------------------- what works in it


def test_check_names_a_mistake_and_its_place_in_a_release(released, edit):
    assert "0 of 100 points" in released.course("check", "1").out
    edit(released.skeleton, UNSOLVED, SQUARED)
    result = released.course("check", "1")
    assert result.status == 1
    assert "Diagnosis: a known mistake" in result.out
    assert "toy-square · task 1.1 · optimizer.py:4 double" in result.out
    assert "You squared." in result.out
    assert "`--explain` shows" not in result.out
    explained = released.course("check", "1", "--explain")
    assert "--explain shows nothing here: this is a student release" in explained.out
    assert "x * 2" not in explained.text
    assert "40/100" not in released.course("status").out


def test_passing_lesson_is_done_in_a_release(released, edit):
    edit(released.skeleton, UNSOLVED, "return x + x")
    edit(
        released.skeleton,
        'raise NotImplementedError("task 1.2: refuse negative numbers")',
        "if x < 0:\n        raise ValueError(x)\n    return x**0.5",
    )
    result = released.course("check", "1")
    assert result.status == 0, result.text
    assert "Done: all tests pass." in result.out
    assert "course diff" not in result.out
    assert "Every lesson is done." in released.course("status").out


def test_reset_brings_the_skeleton_back_in_a_release(released, edit):
    fresh = released.skeleton.read_text()
    edit(released.skeleton, UNSOLVED, "return 0")
    assert "You have edited optimizer.py" in released.course("reset", "1").err
    assert released.course("reset", "1", "--force").status == 0
    assert released.skeleton.read_text() == fresh
    released.skeleton.unlink()
    assert released.course("reset", "1").status == 0
    assert released.skeleton.read_text() == fresh


def test_students_commands_work_in_a_release(released):
    for command in ("learn", "status", "doctor", "hint 1.1", "learn --lang zh"):
        result = released.course(*command.split())
        assert result.status == 0, result.text
        assert "Traceback" not in result.text


def test_watch_works_in_a_release(released, edit):
    screen = Screen(released, "1")
    try:
        screen.until("and the verdict comes here")
        edit(released.skeleton, UNSOLVED, SQUARED)
        screen.until("toy-square")
    finally:
        screen.close()


def test_commands_that_need_solutions_say_so_in_one_sentence(released):
    for command, says in {
        "build": "`course build` does not work here",
        "build --check": "`course build` does not work here",
        "gates": "`course gates` does not work here",
        "mistakes --matrix": "`course mistakes` does not work here",
        "release ../again": "`course release` does not work here",
        "diff 1": "is not in this copy of the course",
        "adopt 1": "is not in this copy of the course",
        "check 1 --impl solutions": "--impl solutions does not work here",
        "build --lang zh": "这是不含参考答案的学生版",
    }.items():
        result = released.course(*command.split())
        assert result.status in (2, 4), result.text
        assert says in result.err
        assert len(result.err.strip().splitlines()) == 1, result.err


def test_run_command_of_a_lesson_page_says_what_to_do_in_a_release(released):
    result = released.cold(f"solutions.{TOY.replace('/', '.')}.run")
    assert result.status == 1
    assert "student release, without solutions" in result.err
    assert "Traceback" not in result.err


# ------------------------------------------------------------------------------------------- what is refused


def test_target_that_is_not_empty_is_refused_and_left_alone(toy, tmp_path):
    folder, file = tmp_path / "full", tmp_path / "there.zip"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    file.write_text("mine")
    for target, says in (
        (folder, "is not empty"),
        (file, "exists"),
        (tmp_path / "no" / "x", "is not a folder"),
    ):
        result = toy.course("release", str(target))
        assert result.status == 2, result.text
        assert says in result.err
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert file.read_text() == "mine"
    (folder / "mine.txt").unlink()
    assert toy.course("release", str(folder)).status == 0


def test_leak_ends_the_release_and_leaves_nothing(toy, tmp_path):
    (toy.root / "README.md").write_text(
        'Write\n`raise ValueError( f"x must be >= 0, got {x}" )`.\n', encoding="utf-8"
    )
    result = toy.course("release", str(tmp_path / "students"))
    assert result.status == 2, result.text
    assert "no release: 1 lines of solutions are in it:" in result.err
    assert (
        f'README.md: `raiseValueError(f"xmustbe>=0,got{{x}}")` (solutions/{TOY}/optimizer.py:17)'
        in result.err
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["err.txt", "out.txt", "repo"]


ANSWER = "param.add_(direction, alpha=-lr)"
PLANTED = {
    "in a page": ("README.md", f"Write `{ANSWER}`, that is all."),
    "spaced otherwise": ("docs/page.md", "param.add_( direction,\n    alpha = -lr )"),
    "in a notebook": ("lesson.ipynb", json.dumps({"source": ["x = 1\n", "param.add_(direction,\n", "alpha=-lr)"]})),
    "in a docstring": ("training/steps.py", f'"""The answer is:\n\n    {ANSWER}\n"""\n'),
    "in a comment": ("training/steps.py", f"x = 1  # {ANSWER}\n"),
    "in the machine": ("course/steps.py", f"{ANSWER}\n"),
    "in JSON": ("testcases/mistakes/fingerprints/x.json", json.dumps({"a": [ANSWER]})),
    "in a file of no kind": ("NOTES", f"\x00{ANSWER}"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "text"), PLANTED.values(), ids=PLANTED)
def test_line_of_a_solution_is_found(tmp_path, file, text):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    (leak,) = find_leaks(tmp_path, [path]).leaks
    assert leak.file == file
    assert leak.line == squeeze(ANSWER)
    assert leak.place.startswith("solutions/stage01_optimizers/lesson01_sgd/optimizer.py:")


def test_code_that_the_course_shows_anyway_is_no_leak(tmp_path):
    path = tmp_path / "training" / "steps.py"
    path.parent.mkdir()
    path.write_text(f"{ANSWER}  # as always\n", encoding="utf-8")
    (tmp_path / "README.md").write_text(f"`{ANSWER}`\n", encoding="utf-8")
    assert find_leaks(tmp_path, [path, tmp_path / "README.md"]).leaks == []


def test_release_waits_for_fingerprints_of_this_state(toy, tmp_path, edit):
    edit(toy.tests / "basic_test.py", "(3.0, 4.0)", "(3.0, 5.0)")
    result = toy.course("release", str(tmp_path / "students"))
    assert result.status == 2
    assert "run `course build` first" in result.err


# ------------------------------------------------------------------------------------------ of this repository


def test_no_line_of_a_solution_is_in_what_this_repository_releases():
    lines = solution_lines()
    search = find_leaks(ROOT, [ROOT / name for name in chosen_files()[0]])
    print(f"{search.lines} of {len(lines)} lines of solutions searched in {search.files} files")
    assert search.leaks == []
    assert search.lines > 400
    assert search.files > 100


def test_lists_of_this_module_name_what_is_there():
    for name, reason in LEFT_OUT.items():
        folder, _, start = name.rpartition("/")
        assert start == "" or list((ROOT / folder).glob(f"{start}*")), name
        assert len(reason) > 10
    lines = solution_lines()
    for line, reason in ALLOWED.items():
        assert squeeze(line) in lines, line
        assert len(reason) > 10


def test_code_of_a_source_has_neither_comments_nor_docstrings():
    source = '"""Text."""\n\n\ndef f(x):\n    """More\n    text."""\n    return "a # b"  # why\n'
    assert code_of(source).split() == ["def", "f(x):", "return", '"a', "#", 'b"']
