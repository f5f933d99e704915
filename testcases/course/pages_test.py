"""What the lessons' pages show under "Run it" is what the command prints."""

import re
import shlex
import subprocess
import sys

import pytest

from course.build import lesson_tests
from course.mistakes import read_catalogue
from course.pages import console_blocks
from course.registry import ROOT, lessons

LONG = {"05", "10"}  # train for minutes


def commands():
    for lesson in lessons():
        text = (lesson.folder / "README.md").read_text(encoding="utf-8")
        for command, output in console_blocks(text):
            if command.startswith("python -m solutions."):
                yield pytest.param(lesson, command, output, id=f"{lesson.number}-{command.split()[2]}")


@pytest.mark.parametrize(("lesson", "command", "output"), list(commands()))
def test_page_shows_what_the_command_prints(lesson, command, output):
    if lesson.number in LONG:
        assert re.search(r"\d\.\d", output)
        pytest.skip(
            f"lesson {lesson.number} trains for minutes; its numbers come from the command in its README"
        )
    arguments = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line.rstrip() for line in done.stdout.strip().splitlines()] == [
        line.rstrip() for line in output.strip().splitlines()
    ]


@pytest.mark.parametrize("lesson", lessons(), ids=lambda lesson: lesson.number)
def test_every_lesson_has_something_to_run(lesson):
    assert any(case.values[0] == lesson for case in commands())


@pytest.mark.parametrize("lesson", lessons(), ids=lambda lesson: lesson.number)
def test_run_on_an_unwritten_lesson_is_one_sentence(lesson, tmp_path):
    from course.build import skeletons

    folder = tmp_path / "tutorial" / lesson.stage / lesson.name
    folder.mkdir(parents=True)
    for skeleton in skeletons(lesson):
        (folder / skeleton.path.name).write_text(skeleton.text, encoding="utf-8")
    module = f"tutorial.{lesson.stage}.{lesson.name}.run"
    environment = {
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "PATH": "",
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", module],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"Not written yet: task {int(lesson.number)}.")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("page", ["README.md", "README_zh.md"])
@pytest.mark.parametrize("lesson", lessons(), ids=lambda lesson: lesson.number)
def test_front_page_links_each_lesson_and_has_its_counts(lesson, page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert f"(tutorial/{lesson.path}/{page})" in text
    tests, catalogue = len(lesson_tests(lesson)), read_catalogue(lesson)
    mistakes, variants = len(catalogue.mistakes), len(catalogue.variants)
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {lesson.name} |"))
    want = [tests, len(lesson.tasks), *(f"{n}/{n}" for n in (tests, tests, mistakes, mistakes, variants))]
    assert [cell.strip() for cell in row.split("|")[2:9]] == [str(value) for value in want]
