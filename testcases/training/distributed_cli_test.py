"""Tests of `torchrun … -m training pretrain`: restarted, stopped, killed, waiting for a rank that never comes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testcases.training.distributed_run import ends, launch, outcome, pretrain, wait_for_rows
from testcases.training.killed_run import difference
from testcases.training.work import ROOT

pytestmark = pytest.mark.limit(120)


@pytest.fixture
def started():
    """Processes to be ended if the test ends before they do."""
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the children of the launcher")
def test_interrupted_ranks_go_on_with_resume_auto_as_if_nothing_had_happened(tmp_path, started):
    """Under torchrun: a rank killed, all restarted, SIGTERM. Without: SIGKILL of one rank, and of all."""
    whole, output_dir = tmp_path / "whole", tmp_path / "run"
    for code, said in ends(launch(2, *pretrain(tmp_path, "--output_dir", str(whole)))):
        assert code == 0, said
    auto = pretrain(tmp_path, "--output_dir", str(output_dir), "--resume", "auto")

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    launcher = subprocess.Popen(
        [*torchrun, "--max-restarts=1", *auto],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    started.append(launcher)
    wait_for_rows(output_dir, 5)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    wait_for_rows(output_dir, 9)
    launcher.terminate()
    out, said = launcher.communicate(timeout=100)
    assert out.count("resume  ") == 1, "torchrun has started all ranks again"
    assert "Stopped by SIGTERM after " in said
    assert "--resume auto goes on from here" in said

    ranks = launch(2, *auto)
    started += ranks
    wait_for_rows(output_dir, 16)
    ranks[1].kill()
    (code, said), _ = ends(ranks)
    assert code == 1
    assert "Stopped: lost contact with another process while " in said
    assert said.splitlines()[-1].endswith("Start all processes again with --resume auto.")
    assert "Traceback" not in said

    ranks = launch(2, *auto)
    started += ranks
    wait_for_rows(output_dir, 24)
    for process in ranks:
        process.kill()
    assert [code for code, _ in ends(ranks)] == [-9, -9]

    for code, said in ends(launch(2, *auto)):
        assert code == 0, said
    assert outcome(whole)["global_step"] == 60
    assert difference(outcome(output_dir), outcome(whole)) is None


def test_rank_that_never_comes_ends_the_others_within_the_timeout(tmp_path, started):
    ranks = launch(2, *pretrain(tmp_path, "--output_dir", str(tmp_path / "run"), "--timeout", "1"))
    started += ranks
    ranks[1].kill()
    (code, said), _ = ends(ranks)
    assert code == 1
    assert said.strip().endswith("--timeout is 1 seconds.")
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
