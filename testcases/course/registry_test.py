"""The registry: lessons from folders, names forgiven, errors that name the file."""

import pytest

from course.errors import CourseError
from course.registry import find_lesson, find_task, lesson_of, lessons, read_lesson

LESSON = """title = "T"
title_zh = "题"

[[task]]
id = "7.1"
points = 100
title = "do"
title_zh = "做"
hint = "h"
hint_zh = "提示"
"""


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "stage01_a" / "lesson07_b" / "lesson.toml"
    path.parent.mkdir(parents=True)
    return path


def test_lessons_of_this_repository_are_in_order_and_worth_100_points_each():
    found = lessons()
    assert [lesson.number for lesson in found] == [f"{n:02}" for n in range(1, len(found) + 1)]
    assert len(found) >= 5
    assert {lesson.points for lesson in found} == {100}


@pytest.mark.parametrize(
    "asked",
    [
        "2",
        "02",
        "lesson02",
        "adamw",
        "AdamW",
        "lesson02_adamw",
        "tutorial/stage01_optimizers/lesson02_adamw/",
    ],
)
def test_lesson_is_found_by_any_of_its_names(asked):
    assert find_lesson(asked).name == "lesson02_adamw"


@pytest.mark.parametrize(("asked", "near"), [("adamv", "lesson02_adamw"), ("lesson1_sdg", "lesson01_sgd")])
def test_wrong_name_gets_the_nearest(asked, near):
    with pytest.raises(CourseError, match=f"Did you mean {near}"):
        find_lesson(asked)


def test_name_like_nothing_gets_the_range():
    with pytest.raises(CourseError, match="There are lessons 01–"):
        find_lesson("99")


def test_wrong_task_gets_the_tasks_of_its_lesson():
    assert find_task(" 2.1 ")[1].id == "2.1"
    with pytest.raises(CourseError, match=r"2\.1"):
        find_task("2.99")


def test_lesson_of_a_path(tmp_path):
    lesson = find_lesson("2")
    assert lesson_of(lesson.testcases / "basic_test.py").name == lesson.name
    assert lesson_of(tmp_path) is None


def test_reads_a_lesson(toml):
    toml.write_text(LESSON, encoding="utf-8")
    lesson = read_lesson(toml)
    assert (lesson.name, lesson.number, lesson.stage, lesson.points) == ("lesson07_b", "07", "stage01_a", 100)
    assert lesson.task("7.1").hint_en == "h"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("points = 100", "points = 99", "must add up to 100, got 99"),
        ("points = 100", 'points = "100"', "`points` must be a non-empty int"),
        ('id = "7.1"', 'id = "8.1"', "task id '8.1' must look like 7.1"),
        ('hint = "h"\n', "", "`hint` must be a non-empty str, got None"),
        ('hint = "h"\n', 'hint = "h"\nhnit = "x"\n', "unknown keys hnit"),
        ('title = "T"\n', "", "`title` must be a string"),
        ("[[task]]", "[[tusk]]", "unknown keys tusk"),
        ("title = ", "title ", "lesson.toml: "),
    ],
)
def test_wrong_file_is_an_error_that_names_it(toml, old, new, says):
    toml.write_text(LESSON.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(CourseError) as caught:
        read_lesson(toml)
    assert str(toml) in str(caught.value)
    assert says in str(caught.value)


def test_two_lessons_with_one_number_are_refused(tmp_path):
    for name in ("lesson07_b", "lesson07_c"):
        path = tmp_path / "stage01_a" / name / "lesson.toml"
        path.parent.mkdir(parents=True)
        path.write_text(LESSON, encoding="utf-8")
    with pytest.raises(CourseError, match="two lessons have the number 07"):
        lessons(tmp_path)
