"""The built site is whole, the same every time, and what cannot be built says why."""

import re
import shutil
import subprocess
import sys

import pytest

from course.errors import CourseError
from course.registry import ROOT
from course.site.build import build, digest
from course.site.check import check
from course.site.contents import read_contents

LESSON = "tutorial/stage01_optimizers/lesson01_sgd/index.html"


def test_every_link_anchor_and_picture_of_the_site_is_there(site):
    report = check(site)
    assert report.problems == []
    print(dict(report.counts))
    assert report.counts["links"] > 10_000
    assert report.counts["anchors"] > 1_000


def test_every_page_of_the_contents_is_there_in_both_languages(site):
    for page in read_contents().pages:
        for folder, language in ((site, "en"), (site / "zh", "zh")):
            text = (folder / f"{page.document}.html").read_text(encoding="utf-8")
            assert f'<html class="no-js" lang="{"zh-CN" if language == "zh" else "en"}"' in text
    assert "带动量的" in (site / "zh" / LESSON).read_text(encoding="utf-8")


def test_second_build_gives_the_same_bytes(site, tmp_path):
    build(tmp_path / "again")
    assert digest(tmp_path / "again") == digest(site)


def test_nothing_of_this_machine_is_in_the_site(site):
    for path in site.rglob("*.html"):
        assert str(ROOT) not in path.read_text(encoding="utf-8"), path


def test_source_page_shows_each_line_under_its_number(site):
    text = (site / "source/training/trainer.py/index.html").read_text(encoding="utf-8")
    lines = (ROOT / "training/trainer.py").read_text(encoding="utf-8").splitlines()
    assert re.findall(r'class="line" id="L(\d+)"', text) == [str(n) for n in range(1, len(lines) + 1)]
    number = next(n for n, line in enumerate(lines, start=1) if line.startswith("class Trainer"))
    reference = (site / "reference/training.trainer.html").read_text(encoding="utf-8")
    assert f'href="../source/training/trainer.py/index.html#L{number}"' in reference


def test_anchors_of_headings_are_those_of_github(site):
    assert 'id="run-it"' in (site / LESSON).read_text(encoding="utf-8")
    assert 'id="核心想法"' in (site / "zh" / LESSON).read_text(encoding="utf-8")


@pytest.fixture
def copy(tmp_path):
    """A repository of a few pages with the machine in it, to break things in."""
    root = tmp_path / "copy"
    shutil.copytree(ROOT / "course", root / "course", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "docs").mkdir()
    (root / "docs" / "contents.toml").write_text(
        'home = "README.md"\nenglish_only = []\n[[part]]\ntitle = "Docs"\ntitle_zh = "文档"\npages = ["docs/*.md"]\n'
    )
    for name in ("README", "docs/page"):
        for twin in ("", "_zh"):
            (root / f"{name}{twin}.md").write_text("# Title\n\n## Part\n\nWords.\n", encoding="utf-8")
    return root


def build_copy(copy):
    command = [sys.executable, "-m", "course", "docs", "build"]
    return subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False, timeout=300)


FAULTS = {
    "[x](gone.md)": "WARNING: gone.md leads nowhere: there is no docs/gone.md",
    "![x](gone.png)": "WARNING: image file not readable: docs/gone.png",
    "```mermaid\nsequenceDiagram\n```": "WARNING: a diagram must begin with 'flowchart LR'",
    "#### Too deep": "WARNING: Non-consecutive header level increase",
}


def test_fault_of_a_page_stops_the_build_with_its_place(copy):
    done = build_copy(copy)
    assert (done.returncode, done.stderr) == (0, "")
    good = digest(copy / "site")
    page = copy / "docs" / "page.md"
    page.write_text("\n\n".join([page.read_text(encoding="utf-8"), *FAULTS]), encoding="utf-8")
    done = build_copy(copy)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for line, (text, complaint) in zip((8, 10, 12, 16), FAULTS.items(), strict=True):
        assert f"docs/page.md:{line}: {complaint}" in done.stderr, text
    assert digest(copy / "site") == good  # the earlier site is left alone


def test_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(CourseError, match="holds something that is not the site"):
        build(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
