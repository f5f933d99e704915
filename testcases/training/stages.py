"""Work for the tests of sft and dpo: a run that is interrupted, one that nobody disturbs, and one that is refused."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from testcases.training.killed_run import difference
from testcases.training.work import ROOT, TINY, rows
from training.__main__ import main
from training.checkpoint import CheckpointManager
from training.logger import comparable
from training.model import GPT

# 60 updates of 3 micro-batches, the last of an epoch shorter; saved, evaluated and logged inside epochs.
EXACT = [
    "--max_steps=60",
    "--log_interval=2",
    "--eval_interval=15",
    "--save_interval=8",
    "--grad_accum_steps=3",
    "--dropout=0.1",
]
# Inside a window, behind the second save, which has waited for the first: 36 updates of sft, 15 of dpo.
AT = 94
SIGNALS = (signal.SIGTERM, signal.SIGKILL)
STATES = ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict")


def interrupt(command: list[str], folder: Path) -> dict[str, tuple[int, str]]:
    """Run in processes that get a signal in the middle of a window, into folder/SIGTERM and folder/SIGKILL.

    Returns the exit code and stderr of each. The processes are forked from one that has imported torch.
    """
    argv = [sys.executable, "-m", "testcases.training.stages", str(folder), *command]
    outcome = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=300, text=True)
    codes = [int(line) for line in outcome.stdout.splitlines()]
    names = [signum.name for signum in SIGNALS]
    return {
        name: (code, (folder / f"{name}.err").read_text()) for name, code in zip(names, codes, strict=True)
    }


def run_in_child(command: list[str], folder: Path, signum: signal.Signals) -> int:
    """A run that sends itself a signal in its forward number AT. Returns the exit code, negative for a signal."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    forward, calls = GPT.forward, itertools.count()

    def interrupted(self: GPT, input_ids: torch.Tensor) -> torch.Tensor:
        if next(calls) == AT:
            os.kill(os.getpid(), signum)
        return forward(self, input_ids)

    GPT.forward = interrupted
    code = 3
    try:
        with (folder / f"{signum.name}.err").open("w") as sys.stderr, open(os.devnull, "w") as sys.stdout:
            code = main([*command, "--output_dir", str(folder / signum.name)])
    finally:
        os._exit(code)


def assert_same_run(output_dir: Path, uninterrupted: Path) -> None:
    """The metrics, and all that the last checkpoints hold of weights, optimizer and generators, are the same bits."""
    assert repr(comparable(rows(output_dir))) == repr(comparable(rows(uninterrupted)))
    newest = CheckpointManager(uninterrupted).latest_valid().path
    got, want = torch.load(output_dir / newest.name), torch.load(newest)
    for part in STATES:
        found = difference(got[part], want[part], part)
        assert found is None, found
    assert torch.equal(got["rng_state"]["torch"], want["rng_state"]["torch"])  # nobody has seeded the others


def refused(capsys, tmp_path: Path, command: list[str]) -> str:
    """The one sentence on stderr of a command that ends with exit code 2 and has written nothing."""
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main([*command, *TINY, "--output_dir", str(tmp_path / "refused")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    return captured.err.rstrip("\n")


if __name__ == "__main__":
    torch.set_num_threads(1)  # before the fork: threads of a pool do not live on in a child
    torch.optim.AdamW(torch.nn.Linear(1, 1).parameters())  # its slow imports, once for both
    for each in SIGNALS:
        print(run_in_child(sys.argv[2:], Path(sys.argv[1]), each), flush=True)
