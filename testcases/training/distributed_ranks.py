"""What each of several ranks does: ``python -m testcases.training.distributed_ranks FOLDER``, started by `run_group`.

It goes through `refusals` and then, with the others, through SCENARIOS; what it saw is in FOLDER/rank-R.pt.
"""

import io
import os
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from testcases.training.distributed_run import build, observe, raise_at
from testcases.training.work import ROOT, TINY
from training import distributed
from training.__main__ import main
from training.distributed import PeerLost, Ranks
from training.meeting import meet


def equal(ranks: Ranks, folder: Path) -> dict:
    """The same as one process; and in which bucket each gradient was, whenever gradients were summed."""
    layouts: list[list[tuple[int, ...]]] = []
    summed = distributed.sum_gradients

    def counted(bucket):
        layouts.append([tuple(gradient.shape) for gradient in bucket.gradients()])
        return summed(bucket)

    distributed.sum_gradients = counted
    try:
        trainer, generator = build(ranks, folder / "equal"), torch.get_rng_state()
        return {**observe(trainer), "layouts": layouts, "generator": generator}
    finally:
        distributed.sum_gradients = summed


def one_inf(ranks: Ranks, folder: Path) -> dict:
    """fp16; on the last rank alone the loss of the fifth micro-step (in the second window) is inf."""
    trainer = build(ranks, use_amp=True, amp_dtype="fp16", max_steps=4)
    if ranks.rank == ranks.world_size - 1:
        trainer.objective.factors[4] = float("inf")
    scales: list[float] = []
    close = trainer.progress.close_window
    trainer.progress.close_window = lambda *result: (
        scales.append(trainer.scaler.get_scale()),
        close(*result),
    )
    return {
        **observe(trainer),
        "scales": scales,
        "skipped": trainer.progress.skipped_steps,
        "global_step": trainer.global_step,
    }


def stopped(ranks: Ranks, folder: Path) -> dict:
    """With dropout: the last rank alone gets SIGTERM inside the second window; all go on in fresh trainers."""
    whole = observe(build(ranks, folder / "whole", dropout=0.2))
    first = build(ranks, folder / "stopped", dropout=0.2)
    if ranks.rank == ranks.world_size - 1:
        raise_at(first, 5)  # the first forward arranges buckets, three are the first window
    before = observe(first)
    second = build(ranks, folder / "stopped", dropout=0.2)
    second.load_checkpoint(folder / "stopped" / f"epoch_0_step_{first.global_step}.pt")
    after = observe(second)
    return {
        "stopped_by": before["stopped_by"],
        "stopped_at": first.global_step,
        "micro_step": first.progress.micro_step,
        "whole": whole,
        "parts": {k: before[k] + after[k] for k in ("grads", "weights", "history", "rows")},
    }


def go_on(ranks: Ranks, folder: Path) -> dict:
    """From one process's file at an update, up to update 5; and from one inside a window, to the end."""
    middle = build(ranks, folder / "middle")
    middle.load_checkpoint(folder / "one" / "epoch_0_step_2.pt")
    if ranks.is_main:
        raise_at(
            middle, 9
        )  # buckets, a window of 1, one of 3, 3 batches of validation, 1 into the fifth update
    inside = build(ranks, folder / "after")
    inside.load_checkpoint(folder / "inside" / "epoch_0_step_1.pt")
    return {"middle": observe(middle), "inside": observe(inside)}


def lost(ranks: Ranks, folder: Path) -> dict:
    """The last rank's model fails; the others, with a short timeout, wait for its gradients, then for anything."""
    trainer, said, waited = build(ranks), [], folder / "waited"
    fails = ranks.rank == ranks.world_size - 1
    if fails:
        trainer.objective.fails_at = 4
    for _ in range(1 if fails else 2):
        try:
            trainer.train()
        except (PeerLost, ArithmeticError) as error:
            said.append(f"{type(error).__name__}: {error}")
    while fails and not waited.exists():  # it is there, and does not answer
        time.sleep(0.1)
    waited.touch()
    return {"said": said}


SCENARIOS = {"equal": equal, "one_inf": one_inf, "stopped": stopped, "go_on": go_on}


# ---- what ranks refuse


def refusals(folder: Path, rank: int) -> dict:
    """Name → (exit code, what was said): commands in which rank 1 means something else than rank 0."""
    data = folder / "text.txt"
    common = ["pretrain", *TINY, "--data", str(data), "--max_steps", "4", "--timeout", "30"]
    saved = sorted((folder / "saved").glob("epoch_*.pt"))
    cases = {
        "setting": ["--lr", ("0.01", "0.02")[rank]],
        "data": ["--data", (str(data), str(folder / "missing.txt"))[rank]],
        "flag": (["--lr", "0.01"], ["--lrr", "0.01"])[rank],
        "content": ["--data", str(folder / ("a", "b")[rank] / "text.txt")],
        "checkpoint": ["--resume", str(saved[rank])],
        "batch": ["--batch_size", "1"],
    }
    found = {}
    for number, (name, flags) in enumerate(cases.items()):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)  # each has its own place in the store
        output, said = folder / f"refused-{name}", io.StringIO()
        if name == "content":  # the path is part of the configuration: the same text on both machines
            os.chdir(folder / ("a", "b")[rank])
            flags = ["--data", "text.txt"]
        with redirect_stderr(said), redirect_stdout(said):
            code = main([*common, *flags, "--output_dir", str(output)])
        os.chdir(ROOT)
        found[name] = (code, said.getvalue(), output.exists())
    return found


def run(folder: Path) -> None:
    torch.set_num_threads(1)
    found = {"refusals": refusals(folder, int(os.environ["RANK"]))}
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "100"
    meeting = meet(60)
    meeting.begin(torch.device("cpu"))
    for name, scenario in SCENARIOS.items():
        found[name] = scenario(meeting.ranks, folder)
    meeting.ranks.close()
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group",
        rank=meeting.ranks.rank,
        world_size=meeting.ranks.world_size,
        timeout=timedelta(seconds=5),
    )
    found["lost"] = lost(meeting.ranks, folder)
    torch.save(found, folder / f"rank-{meeting.ranks.rank}.pt")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
