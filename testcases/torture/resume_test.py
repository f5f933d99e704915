"""A sample of `python -m testcases.torture resume`, and proof that it notices a saver or a restorer that is wrong."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from course.registry import ROOT, SOLUTIONS
from testcases.torture.resume import difference

LESSON = "stage02_pretrain/lesson09_exact_resume"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def torture(*options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "testcases.torture", "resume", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_sample_of_kill_points_is_bit_identical(tmp_path):
    status, output = torture("--sample", "12", "--folder", str(tmp_path))
    assert status == 0, output
    assert re.search(r"^all +12 +12$", output, re.MULTILINE), output
    assert "fresh python" in output
    assert list(tmp_path.iterdir()) == [], "it cleans up"


def test_a_planted_mistake_is_noticed(tmp_path):
    """Gradients that wait in a window are not restored: a weak update after the resume."""
    copy = tmp_path / "impl" / LESSON
    shutil.copytree(SOLUTIONS / LESSON, copy, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / "checkpoint.py"
    source, right = path.read_text(encoding="utf-8"), "param.grad = None if grad is None else"
    assert source.count(right) == 1
    path.write_text(source.replace(right, "param.grad = None if True else"), encoding="utf-8")
    status, output = torture("--impl", str(tmp_path / "impl"), "--sample", "8", "--folder", str(tmp_path))
    assert status == 1, output
    assert re.search(r"^updated|^gradient added|^batch fetched|^saved|^save: ", output, re.MULTILINE), output
    assert "the tensors differ" in output or "expected" in output, output


@pytest.mark.parametrize(
    "other",
    [
        {"a": [1.0, torch.tensor([1.0, 2.5])], "b": None},
        {"a": [1.0, torch.tensor([1.0, 2.0], dtype=torch.float64)], "b": None},
        {"a": [1, torch.tensor([1.0, 2.0])], "b": None},
        {"a": [1.0, torch.tensor([1.0, 2.0])], "b": torch.zeros(1)},
        {"a": [1.0, torch.tensor([1.0, 2.0])]},
        {"a": [1.0], "b": None},
    ],
)
def test_a_difference_is_found(other):
    want = {"a": [1.0, torch.tensor([1.0, 2.0])], "b": None}
    assert difference(want, {"a": [1.0, torch.tensor([1.0, 2.0])], "b": None}) is None
    assert difference(other, want) is not None
