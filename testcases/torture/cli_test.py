"""A sample of `python -m testcases.torture cli`, and proof that it notices a resume that is not exact."""

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from course.registry import ROOT
from testcases.torture.cli import LIMIT, _bits, _complaint
from testcases.torture.resume import difference

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def sweep(kills: int, folder: Path, root: Path = ROOT) -> tuple[int, str]:
    """The command in a process of its own: this one may have trained, and must not be forked."""
    command = [
        sys.executable,
        "-m",
        "testcases.torture",
        "cli",
        "--kills",
        str(kills),
        "--folder",
        str(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)  # the package under test is that of root
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=4 * LIMIT, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.limit(120)
def test_a_few_kills_leave_runs_that_are_bit_identical(tmp_path):
    status, output = sweep(4, tmp_path)
    assert status == 0, output
    assert re.search(r"^all +[4-9] ", output, re.MULTILINE), output
    runs = re.search(r"bit-identical to the uninterrupted +(\d+) of (\d+)", output)
    assert runs is not None, output
    assert runs[1] == runs[2] != "0", output
    assert list(tmp_path.iterdir()) == [], "it cleans up"


@pytest.mark.limit(120)
def test_a_resume_without_the_random_generator_is_noticed(tmp_path):
    """The dropout of a resumed run is then another one; everything else is right."""
    for room in ("course", "solutions", "tutorial", "testcases"):
        (tmp_path / room).symlink_to(ROOT / room)
    copy = shutil.copytree(
        ROOT / "training", tmp_path / "training", ignore=shutil.ignore_patterns("__pycache__")
    )
    path, right = copy / "rng.py", 'torch.set_rng_state(state["torch"].cpu())'
    source = path.read_text(encoding="utf-8")
    assert source.count(right) == 1
    path.write_text(source.replace(right, "pass"), encoding="utf-8")
    work = tmp_path / "work"
    work.mkdir()
    status, output = sweep(12, work, tmp_path)
    assert status == 1, output
    assert re.search(r"^DIFFERS: run \d+ \((fp16|bf16)\): \['metrics.jsonl'\]", output, re.MULTILINE), output


@pytest.mark.parametrize(
    ("value", "other"),
    [(0.0, -0.0), (torch.tensor([0.0]), torch.tensor([-0.0])), (torch.zeros(2), torch.zeros(1, 2)), (1, 1.0)],
)
def test_values_that_compare_equal_and_differ_in_a_bit_are_told_apart(value, other):
    assert difference(_bits({"a": [value]}), _bits({"a": [other]})) is not None


def test_nan_equals_itself():
    value = {"a": (math.nan, torch.tensor([math.nan, 1.0], dtype=torch.bfloat16)), "b": "text", "c": None}
    assert difference(_bits(value), _bits(value)) is None


@pytest.mark.parametrize(
    ("said", "status", "killed", "complaint"),
    [
        ("step 2/120  loss 5.5\n", -9, True, None),
        ("wrote   run\n", 0, True, None),
        ("passed over: run/epoch_0_step_5.pt is damaged\n", -9, True, "passed over"),
        ("step 2/120  loss 5.5\n", -9, False, "exit status -9"),
        ("step 2/120  loss 5.5\n", 1, True, "exit status 1"),
    ],
)
def test_what_no_start_may_say_or_do_is_a_complaint(tmp_path, said, status, killed, complaint):
    (tmp_path / "log.txt").write_text(said)
    found = _complaint(status, tmp_path, killed)
    assert found is None if complaint is None else complaint in found
