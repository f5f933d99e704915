"""The sampled part of the fault matrix, and proof that the matrix notices what is wrong. Run: pytest testcases/torture

The seed of the sample is printed; TORTURE_SEED=N gives it.
"""

import ast
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from course.registry import ROOT
from testcases.torture.injector import Fault, run
from testcases.torture.matrix import MODULES, Budget, Row, matrix, problems
from testcases.torture.ptrace import unavailable
from testcases.torture.system_calls import WRITES

needs_ptrace = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_sample_of_every_class_of_faults_is_good(tmp_path):
    seed = os.environ.get("TORTURE_SEED") or str(random.SystemRandom().randrange(10**6))
    command = [sys.executable, "-m", "testcases.torture", "matrix", "--sample", "--seed", seed]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"seed {seed}" in done.stdout
    assert "0 lost, 0 silently wrong" in done.stdout


def test_every_module_with_rows_is_part_of_the_matrix():
    folder = Path(__file__).parent
    with_rows = {
        path.stem
        for path in folder.glob("*.py")
        if any(
            isinstance(each, ast.FunctionDef) and each.name == "rows"
            for each in ast.parse(path.read_text()).body
        )
    }
    assert with_rows == set(MODULES)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(
    ("row", "sample", "status"),
    [
        (Row("a", 5, 5, [], 0.1), False, 0),
        (Row("a", 4, 5, [], 0.1), False, 1),
        (Row("a", 4, 5, [], 0.1), True, 0),
        (Row("a", 5, 5, ["lost: x"], 0.1), True, 1),
        (Row("a", 5, 5, [], 0.1, note="planted protocol errors found 4 / 5"), True, 1),
        (Row("a", 0, 5, [], 0.0, note="no mount here", skipped=True), False, 0),
    ],
)
def test_a_failure_a_low_count_or_a_missed_plant_is_the_exit_status(
    row, sample, status, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr("testcases.torture.matrix._isolated", lambda name, budget: iter([row]))
    assert matrix(sample, 1, MODULES[0], tmp_path) == status
    assert row.name in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_module_that_dies_is_a_failure_and_keeps_its_rows(monkeypatch, tmp_path, capfd):
    def rows(budget: Budget):
        yield Row("first", 1, 1, [], 0.1)
        os._exit(7)

    monkeypatch.setattr(f"testcases.torture.{MODULES[0]}.rows", rows)
    assert matrix(True, 1, MODULES[0], tmp_path) == 1
    output = capfd.readouterr().out
    assert "first" in output
    assert "ended with 7" in output


def test_problems_name_the_count_below_the_bar():
    assert problems(Row("a", 4, 5, ["lost: x"], 0.1), sample=False) == [
        "lost: x",
        "4 trials, and the bar is 5",
    ]


# ---- the injector


def _work(folder: Path):
    def work(say) -> None:
        path = folder / "a"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        say(str(os.write(descriptor, b"0123456789")))
        os.fsync(descriptor)
        os.close(descriptor)
        os.replace(path, folder / "b")
        say("done")

    return work


@needs_ptrace
def test_every_operation_is_seen_with_its_path(tmp_path):
    traced = run(_work(tmp_path), tmp_path)
    names = ["creat a", "write a (10 bytes)", "fsync a", "close a", "rename a → b"]
    assert [str(each) for each in traced.operations] == names
    assert (traced.said, traced.status) == (["10", "done"], 0)
    assert run(_work(tmp_path), tmp_path / "elsewhere").operations == []


@needs_ptrace
@pytest.mark.parametrize(
    ("fault", "said", "files"),
    [
        (Fault(1, kill=True), [], {"a": b""}),
        (Fault(1, kill=True, size=3), [], {"a": b"012"}),
        (Fault(1, size=3), ["3", "done"], {"b": b"012"}),
        (Fault(4, kill=True), ["10"], {"a": b"0123456789"}),
        (Fault(1, error=28), ["raised OSError 28"], {"a": b""}),
        (Fault(3, error=5), ["10", "raised OSError 5"], {"a": b"0123456789"}),
        (Fault(0, error=30, lasting=frozenset({"write"})), ["raised OSError 30"], {}),
        (
            Fault(1, size=3, error=28, lasting=frozenset({"rename"})),
            ["3", "raised OSError 28"],
            {"a": b"012"},
        ),
    ],
    ids=str,
)
def test_a_fault_does_what_it_says(fault, said, files, tmp_path):
    assert set(WRITES) == {"write", "pwrite64"}
    traced = run(_work(tmp_path), tmp_path, fault)
    assert [text.partition(":")[0] for text in traced.said] == said
    assert traced.status == (-9 if fault.kill else 0)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


@needs_ptrace
def test_a_close_that_fails_has_closed_nevertheless(tmp_path):
    """As on every system: else the trials would show descriptors that no real error leaves open."""

    def work(say) -> None:
        descriptor = os.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="Input/output"):
            os.close(descriptor)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
        say("closed")

    assert run(work, tmp_path, Fault(1, error=5)).said == ["closed"]
