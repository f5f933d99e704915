"""`course/bootstrap.py docs`: what the site needs comes on top of what the course needs, and is kept like it."""

import os
import shutil
import subprocess
import sys

import pytest

from course.registry import ROOT

pytestmark = pytest.mark.skipif(os.name == "nt", reason="paths of a Unix virtual environment")


@pytest.fixture
def clone(tmp_path):
    (tmp_path / "course").mkdir()
    shutil.copy(ROOT / "course" / "bootstrap.py", tmp_path / "course")
    (tmp_path / "pyproject.toml").write_text("")
    for name in ("requirements.txt", "requirements-docs.txt"):
        (tmp_path / name).write_text("# nothing: an install without a network\n")
    return tmp_path


def bootstrap(clone, *arguments):
    command = [sys.executable, "course/bootstrap.py", *arguments]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False, timeout=120)


def test_docs_are_installed_when_asked_for_and_then_kept(clone):
    first = bootstrap(clone)
    assert (first.returncode, "requirements-docs.txt" in first.stdout) == (0, False)

    (clone / "requirements-docs.txt").write_text("./no-such-folder\n")
    failed = bootstrap(clone, "docs")
    assert failed.returncode == 1
    assert "pip could not install requirements-docs.txt" in failed.stderr
    assert bootstrap(clone).stdout == ""  # the course itself is as ready as before

    (clone / "requirements-docs.txt").write_text("# nothing\n")
    assert "Installing requirements-docs.txt" in bootstrap(clone, "docs").stdout
    again = bootstrap(clone, "docs")
    assert (again.returncode, again.stdout) == (0, "")

    (clone / "requirements.txt").write_text("# changed\n")  # may have moved a version that the site shares
    assert bootstrap(clone, "docs").stdout.count("Installing") == 2


def test_unknown_word_is_a_sentence(clone):
    result = bootstrap(clone, "dosc")
    assert result.returncode == 1
    assert result.stderr == "bootstrap: expected nothing or 'docs', got dosc\n"
