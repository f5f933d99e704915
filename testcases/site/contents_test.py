"""docs/contents.toml and the pages that lie in the repository agree, or the build says how they do not."""

import pytest

from course.errors import CourseError
from course.registry import ROOT
from course.site.contents import page_files, read_contents

CONTENTS = """
home = "README.md"
english_only = ["CHANGELOG.md"]

[[part]]
title = "Lessons"
title_zh = "课程"
pages = ["tutorial/*/README.md", "docs/b.md"]

[[part]]
title = "Rest"
title_zh = "其余"
pages = ["docs/*.md", "CHANGELOG.md"]
"""
FILES = [
    "README.md",
    "README_zh.md",
    "CHANGELOG.md",
    "docs/a.md",
    "docs/a_zh.md",
    "docs/z.md",
    "docs/z_zh.md",
    "docs/README.md",
    "docs/README_zh.md",
    "docs/b.md",
    "docs/b_zh.md",
    "tutorial/one/README.md",
    "tutorial/one/README_zh.md",
    "tutorial/one/lesson.ipynb",
    "tutorial/one/lesson_zh.ipynb",
]


@pytest.fixture
def root(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "docs" / "contents.toml").write_text(CONTENTS, encoding="utf-8")
    return tmp_path


def complaint(root):
    with pytest.raises(CourseError) as caught:
        read_contents(root)
    return str(caught.value).splitlines()[1:]


def test_pages_come_in_the_order_of_the_file_and_a_pattern_takes_what_is_left(root):
    contents = read_contents(root)
    assert [[page.document for page in part.pages] for part in contents.parts] == [
        ["tutorial/one/index", "docs/b"],
        ["docs/index", "docs/a", "docs/z", "CHANGELOG"],
    ]
    assert contents.home.document == "index"
    assert [page.source("zh") for page in contents.pages] == [
        "README_zh.md",
        "tutorial/one/README_zh.md",
        "docs/b_zh.md",
        "docs/README_zh.md",
        "docs/a_zh.md",
        "docs/z_zh.md",
        "CHANGELOG.md",
        "tutorial/one/lesson_zh.ipynb",
    ]
    lesson = contents.parts[0].pages[0]
    assert contents.notebook_of(lesson).document == "tutorial/one/lesson"
    assert contents.notebook_of(contents.home) is None


@pytest.mark.parametrize(
    ("added", "removed", "words"),
    [
        ("docs/deep/c.md docs/deep/c_zh.md", "", "docs/deep/c.md is in no part"),
        ("", "docs/b.md docs/b_zh.md", "names docs/b.md, which is not there"),
        ("", "docs/a_zh.md", "docs/a.md has no Chinese twin docs/a_zh.md"),
        ("", "tutorial/one/lesson_zh.ipynb", "tutorial/one/lesson.ipynb has no Chinese twin"),
        ("docs/c_zh.md", "", "docs/c_zh.md has no English twin"),
        ("CHANGELOG_zh.md", "", "english_only names CHANGELOG.md, which has a Chinese twin"),
        ("", "CHANGELOG.md", "english_only names CHANGELOG.md, which is not there"),
    ],
)
def test_page_that_is_nowhere_or_alone_is_named(root, added, removed, words):
    for name in added.split():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    for name in removed.split():
        (root / name).unlink()
    assert any(words in line for line in complaint(root))


def test_the_repositorys_own_contents_are_complete():
    contents = read_contents()
    assert {file for page in contents.pages for file in (page.english, page.chinese) if file} == set(
        page_files(ROOT)
    )
    assert len(contents.pages) >= 16
