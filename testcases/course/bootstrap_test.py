"""`course/bootstrap.py`: a failed or interrupted install is never taken for a finished one."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from course.registry import ROOT

pytestmark = pytest.mark.skipif(os.name == "nt", reason="paths of a Unix virtual environment")


@pytest.fixture
def clone(tmp_path):
    (tmp_path / "course").mkdir()
    shutil.copy(ROOT / "course" / "bootstrap.py", tmp_path / "course")
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "requirements.txt").write_text("# nothing: an install without a network\n")
    return tmp_path


def bootstrap(clone):
    command = [sys.executable, "course/bootstrap.py"]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False, timeout=120)


def test_failed_install_is_not_taken_for_good_and_a_finished_one_is_kept(clone):
    (clone / "requirements.txt").write_text("./no-such-folder\n")
    failed = bootstrap(clone)
    assert failed.returncode == 1
    assert "pip could not install requirements.txt" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (clone / ".venv" / "installed.txt").exists()

    (clone / "requirements.txt").write_text("# nothing\n")
    assert bootstrap(clone).returncode == 0
    marker = clone / ".venv" / "marker"
    marker.touch()
    again = bootstrap(clone)
    assert (again.returncode, again.stdout) == (0, "")

    (clone / "requirements.txt").write_text("# changed\n")  # brought up to date in place
    assert "Installing" in bootstrap(clone).stdout
    assert marker.exists()

    (clone / ".venv" / "bin" / "python").unlink()  # broken: made anew
    assert bootstrap(clone).returncode == 0
    assert not marker.exists()
    assert (clone / ".venv" / "bin" / "python").exists()


def test_interrupted_install_starts_afresh(clone):
    process = subprocess.Popen(
        [sys.executable, "course/bootstrap.py"],
        cwd=clone,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # In the background of a script SIGINT is ignored, and a child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (clone / ".venv" / "bin").is_dir():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (clone / ".venv" / "installed.txt").exists()
    (clone / ".venv" / "leftover").touch()
    assert bootstrap(clone).returncode == 0
    assert not (clone / ".venv" / "leftover").exists()


def test_folder_that_is_no_virtual_environment_is_left_alone(clone):
    (clone / ".venv").mkdir()
    (clone / ".venv" / "thesis.txt").write_text("years of work")
    result = bootstrap(clone)
    assert result.returncode == 1
    assert "is not a virtual environment" in result.stderr
    assert (clone / ".venv" / "thesis.txt").read_text() == "years of work"


def test_old_python_gets_a_sentence(clone):
    source = (clone / "course" / "bootstrap.py").read_text()
    (clone / "course" / "bootstrap.py").write_text(source.replace("MINIMUM = (3, 11)", "MINIMUM = (3, 99)"))
    result = bootstrap(clone)
    assert result.returncode == 1
    assert "Python 3.99 or newer is needed" in result.stderr
