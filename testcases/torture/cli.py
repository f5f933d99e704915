"""Kill `python -m training pretrain … --resume auto` at random moments, again and again, until it is done; compare.

Run it:  python -m testcases.torture cli [--kills 100] [--seed 0]

What a user would do after each power cut: start the same command again. Dropout, accumulation with a short last
window, AMP (fp16 in every second run, else bf16), evaluation and many asynchronous saves are on. SIGKILL comes after
a random time: during the start, an update, an evaluation, a save, after the end. The finished run must be the
uninterrupted one, bit for bit: newest and best checkpoint with all that is in them, and metrics.jsonl but for
measured columns. And no start may meet a damaged file: a kill never leaves one.

Most processes are forked from this one, which has torch imported and has never trained; every tenth is a Python of
its own, as a user has it.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import training
from testcases.torture.resume import difference
from training.__main__ import main as training_main
from training.corpus import topics
from training.logger import comparable, read_metrics

ROOT = Path(training.__file__).parents[1]  # of the package under test, wherever this file lies
LIMIT = 120.0  # seconds for one process
MAX_STEPS, EVAL_INTERVAL = 120, 12
# Half of the text to train on, in 20 micro-batches of 4 rows of 16 bytes: the last window has 2 instead of 3.
TEXT_BYTES = 2 * (20 * 4 * 16 + 1)
FLAGS = (
    f"--data ../text.txt --output_dir run --resume auto --device cpu --block_size 16 --n_layer 1 --n_head 2 "
    f"--n_embd 16 --dropout 0.1 --batch_size 4 --val_fraction 0.5 --grad_accum_steps 3 --max_steps {MAX_STEPS} "
    f"--eval_interval {EVAL_INTERVAL} --save_interval 5 --log_interval 2 --keep_last 2 --use_amp --amp_dtype"
).split()
AMP = ("fp16", "bf16")
PHASES = ("startup", "training", "evaluation", "saving", "after the training")
COMPLAINTS = ("passed over", "damaged", "rows that the run had", "not saved", "Traceback")


@dataclass
class Tally:
    """What has happened so far."""

    phases: Counter[str] = field(default_factory=Counter)
    fifths: Counter[int] = field(default_factory=Counter)
    fresh: int = 0
    starts: int = 0
    runs: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.phases.total()


class Uninterrupted:
    """The runs that nobody disturbs, each made when it is first asked for."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._known: dict[tuple[str, bool], tuple[float, dict[str, Any]]] = {}

    def run(self, amp: str, fresh: bool = False) -> tuple[float, dict[str, Any]]:
        """How many seconds it takes, and what it ends with. RuntimeError: it fails."""
        if (amp, fresh) not in self._known:
            here = self.scratch / f"uninterrupted-{amp}-{fresh}"
            here.mkdir()
            began = time.monotonic()
            status = _wait(_start(amp, here, fresh), None)
            seconds = time.monotonic() - began
            if problem := _complaint(status, here):
                raise RuntimeError(f"the uninterrupted run: {problem}")
            self._known[amp, fresh] = seconds, outcome(here)
        return self._known[amp, fresh]


def sweep(kills: int, seed: int, folder: Path | None) -> int:
    """Runs until so many kills have happened, each run compared; prints a table. Returns 1 where anything differs."""
    if not hasattr(os, "fork"):
        print("this needs os.fork: run it on Linux or macOS", file=sys.stderr)
        return 2
    if kills < 1:
        raise ValueError(f"--kills must be >= 1, got {kills}")
    began, rng, tally = time.monotonic(), random.Random(seed), Tally()
    _prepare()
    with tempfile.TemporaryDirectory(prefix="torture-", dir=folder) as scratch:
        Path(scratch, "text.txt").write_bytes("".join(topics()).encode("ascii", "ignore")[:TEXT_BYTES])
        uninterrupted = Uninterrupted(Path(scratch))
        while tally.kills < kills and not tally.problems:
            amp = AMP[tally.runs % len(AMP)]
            here = Path(scratch, f"{tally.runs}-{amp}")
            here.mkdir()
            try:
                _run_to_the_end(amp, here, kills, uninterrupted, rng, tally)
                problem = difference(outcome(here), uninterrupted.run(amp)[1])
            except RuntimeError as error:
                problem = str(error)
            tally.runs += 1
            if problem:
                tally.problems.append(f"run {tally.runs} ({amp}): {problem}")
            shutil.rmtree(here)
    _print(tally, seed, time.monotonic() - began)
    return 1 if tally.problems else 0


def _prepare() -> None:
    """Import what every child needs. No backward pass here: autograd's threads do not survive a fork."""
    import matplotlib.pyplot  # noqa: F401

    import training.execute
    import training.pretrain  # noqa: F401

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)])


def _run_to_the_end(
    amp: str, here: Path, kills: int, uninterrupted: Uninterrupted, rng: random.Random, tally: Tally
) -> None:
    """Start, kill, start again … until the command is done. RuntimeError: what a process should not have done."""
    phase = ""
    while True:
        fresh = tally.starts % 10 == 9
        tally.starts += 1
        spared = (
            tally.kills >= kills or phase == PHASES[-1]
        )  # nothing but the picture is left: once is enough
        delay = None if spared else rng.uniform(0, 0.4 * uninterrupted.run(amp, fresh)[0])
        litter = _litter(here)
        status = _wait(_start(amp, here, fresh), delay)
        if problem := _complaint(status, here, killed=delay is not None):
            raise RuntimeError(problem)
        if status == 0:
            return
        phase, step = _place(here, litter)
        tally.phases[phase] += 1
        tally.fifths[min(4, 5 * step // MAX_STEPS)] += 1
        tally.fresh += fresh


# ---------------------------------------------------------------------------------------------- processes


def _start(amp: str, here: Path, fresh: bool) -> int:
    """`python -m training pretrain …` in a child. Returns its process id."""
    arguments = ["pretrain", *FLAGS, amp]
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.chdir(here)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(log, 1), os.dup2(log, 2)
        if fresh:
            environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", PYTHONHASHSEED="random")
            os.execve(sys.executable, [sys.executable, "-m", "training", *arguments], environment)
        status = training_main(arguments)
        sys.stdout.flush()
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 70
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int, delay: float | None) -> int:
    """SIGKILL after delay seconds (None: after LIMIT). Returns the exit status, −9 where it was killed."""
    deadline = time.monotonic() + (LIMIT if delay is None else delay)
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if (left := deadline - time.monotonic()) <= 0:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(min(left, 0.005))


def _complaint(status: int, here: Path, killed: bool = False) -> str | None:
    """What a process has said or done that none may, or None."""
    lines = (here / "log.txt").read_text(errors="replace").splitlines() if (here / "log.txt").exists() else []
    if found := next((line for line in lines if any(text in line for text in COMPLAINTS)), None):
        return found
    if status == 0 or (killed and status == -signal.SIGKILL):
        return None
    return f"exit status {status} ({lines[-1] if lines else 'nothing said'})"


# ---------------------------------------------------------------------------------------------- what they leave


def _litter(here: Path) -> set[str]:
    return {path.name for path in here.glob("run/.*.saving")}


def _place(here: Path, litter_before: set[str]) -> tuple[str, int]:
    """In which phase the process was killed, and the last update of which a row was written."""
    log = here / "log.txt"
    metrics = here / "run" / "metrics.jsonl"
    rows = read_metrics(metrics) if metrics.exists() else []
    step = rows[-1]["global_step"] if rows else 0
    if not log.exists() or "model " not in log.read_text():
        return "startup", step
    if _litter(here) - litter_before:  # an older process's may still lie there
        return "saving", step
    if not rows:
        return "training", step
    if "train_loss" in rows[-1]:  # a validation row follows the training row of its update
        evaluating = step % EVAL_INTERVAL == 0 or step == MAX_STEPS
        return "evaluation" if evaluating else "training", step
    return "after the training" if step == MAX_STEPS else "training", step


def outcome(here: Path) -> dict[str, Any]:
    """All in which two equal runs agree, in a form that compares bits: a NaN equals itself, −0 is not 0."""
    newest = next((here / "run").glob(f"epoch_*_step_{MAX_STEPS}.pt"))
    files = {"newest checkpoint": newest, "best_model.pt": here / "run" / "best_model.pt"}
    return {
        "metrics.jsonl": _bits(comparable(read_metrics(here / "run" / "metrics.jsonl"))),
        **{name: _bits(_decisive(torch.load(path))) for name, path in files.items()},
    }


def _decisive(state: dict[str, Any]) -> dict[str, Any]:
    """Without the loader's own generator, which is there to be drawn from at the begin of an iteration: it differs from
    start to start, and decides nothing."""
    data = {name: value for name, value in state["data_state_dict"].items() if name != "generator"}
    return {**state, "data_state_dict": data}


def _bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {tuple(value.shape)} sha256 {hashlib.sha256(data).hexdigest()[:16]}"
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {key: _bits(item) for key, item in value.items()}
    return [_bits(item) for item in value] if isinstance(value, list | tuple) else value


def _print(tally: Tally, seed: int, seconds: float) -> None:
    print(f"{'killed during':<20}  kills")
    for phase in PHASES:
        print(f"{phase:<20}  {tally.phases[phase]:>5}")
    print(f"{'all':<20}  {tally.kills:>5}   ({tally.fresh} of them a fresh Python)")
    fifths = " ".join(str(tally.fifths[i]) for i in range(5))
    print(f"\nkills by fifth of the {MAX_STEPS} updates   {fifths}")
    print(f"runs bit-identical to the uninterrupted   {tally.runs - len(tally.problems)} of {tally.runs}")
    print(f"seed {seed}, {tally.starts} starts, {seconds:.0f} s")
    for problem in tally.problems:
        print(f"DIFFERS: {problem}")
