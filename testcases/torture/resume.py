"""Kill the training program at every instant, resume it, compare with the run that was never interrupted.

Run it:  python -m testcases.torture resume [--impl solutions] [--seed N] [--sample N] [--device cpu]

Each trial is two processes that share nothing but a folder. The first is killed by SIGKILL at its n-th instant (see
points.py); the second goes on from what lies there. The result must be that of the reference, bit for bit; and it
must go on from the last save that was finished, or a later one: starting over would be exact, too.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from course import lazy_dynamo
from course.registry import ROOT
from testcases.torture.program import Options, run

LIMIT = 120.0  # seconds for one process


@dataclass(frozen=True)
class Trial:
    """One run to kill: where (the numbers of one or two instants), and how its processes are started."""

    kind: str
    options: Options
    kills: tuple[int, ...]
    start: Callable[[Options], int]


@dataclass(frozen=True)
class Reference:
    """The run that was never interrupted."""

    options: Options
    same: dict
    kinds: list[str]
    acknowledged: list[int]


def torture(impl: str, seed: int, sample: int | None, device: str, folder: Path | None) -> int:
    """All kill points, or a sample; prints a table. Returns 1 where anything differs, 2 where it cannot run."""
    if not hasattr(os, "fork"):
        print("this needs os.fork: run it on Linux or macOS", file=sys.stderr)
        return 2
    began = time.monotonic()
    _prepare()
    with tempfile.TemporaryDirectory(prefix="torture-", dir=folder) as scratch:
        base = Options(Path(scratch, "reference"), impl, seed, device)
        settings = [base, replace(base, workers=2), replace(base, save_every=5)]
        references = []
        for options in settings:
            problem, reference = _reference(options)
            if reference is None:
                print(f"the uninterrupted run fails: {problem}", file=sys.stderr)
                return 1
            references.append(reference)
        trials = _trials(references, random.Random(seed), sample)
        tried, identical, problems = Counter[str](), Counter[str](), []
        for number, (trial, reference) in enumerate(trials):
            problem = _try(trial, reference, Path(scratch, str(number)))
            tried[trial.kind] += 1
            identical[trial.kind] += problem is None
            if problem is not None:
                problems.append(
                    f"{trial.kind}, killed at {trial.kills}, {trial.options.arguments()[1:]}: {problem}"
                )
    _print_table(tried, identical, seed, device, time.monotonic() - began)
    for problem in problems[:20]:
        print(problem)
    return 1 if problems else 0


def _prepare() -> None:
    """Import what every child needs. No backward pass here: autograd's threads do not survive a fork."""
    torch.set_num_threads(1)
    lazy_dynamo.install()
    torch.optim.SGD([torch.zeros(1)], lr=0.0)


# ---------------------------------------------------------------------------------------------- kill points


def _trials(
    references: list[Reference], rng: random.Random, sample: int | None
) -> list[tuple[Trial, Reference]]:
    """Every instant of the plain run; with workers or rare saves those outside of a save; fresh processes."""
    plain = references[0]
    found = []
    for reference in references:
        for number, kind in enumerate(reference.kinds):
            if reference is plain or not kind.startswith("save:"):
                found.append(
                    (Trial(_label(kind, reference.options), reference.options, (number,), _forked), reference)
                )
    count = len(plain.kinds)
    for _ in range(10):
        twice = (rng.randrange(count // 2), rng.randrange(count // 3))
        found.append((Trial("killed again after the resume", plain.options, twice, _forked), plain))
    for number in rng.sample(range(count), 3):
        found.append((Trial("fresh python for both", plain.options, (number,), _fresh), plain))
    if sample is None or sample >= len(found):
        return found
    kinds: dict[str, list] = {}
    for one in found:
        kinds.setdefault(one[0].kind, []).append(one)
    queues = [rng.sample(group, len(group)) for group in kinds.values()]
    rng.shuffle(queues)
    queues.sort(
        key=lambda queue: not queue[0][0].kind.startswith("fresh")
    )  # dear, but the real thing: always one
    turns = [
        one for turn in range(max(map(len, queues))) for queue in queues for one in queue[turn : turn + 1]
    ]
    return turns[:sample]


def _label(kind: str, options: Options) -> str:
    more = f", {options.workers} workers" if options.workers else ""
    return kind + (f", a save every {options.save_every}" if options.save_every > 1 else more)


# ---------------------------------------------------------------------------------------------- one trial


def _reference(options: Options) -> tuple[str, Reference | None]:
    folder = Path(f"{options.folder}-{options.workers}-{options.save_every}")
    folder.mkdir(parents=True)
    status = _forked(replace(options, folder=folder))
    if status != 0:
        return _words(status, folder), None
    result = torch.load(folder / "result.pt", weights_only=True)
    return "", Reference(options, result["same"], result["kinds"], result["acknowledged"])


def _try(trial: Trial, reference: Reference, folder: Path) -> str | None:
    """What went wrong, in a sentence, or None."""
    folder.mkdir()
    try:
        return _run_trial(trial, reference, replace(trial.options, folder=folder))
    finally:
        shutil.rmtree(folder)


def _run_trial(trial: Trial, reference: Reference, options: Options) -> str | None:
    for turn, kill in enumerate(trial.kills):
        status = trial.start(replace(options, kill=kill))
        if turn > 0 and status == 0:  # the resumed run was over before its instant came
            break
        if status != -signal.SIGKILL:
            return f"it was to be killed: {_words(status, options.folder)}"
    (options.folder / "result.pt").unlink(missing_ok=True)
    status = trial.start(options)
    if status != 0:
        return f"the resumed run: {_words(status, options.folder)}"
    result = torch.load(options.folder / "result.pt", weights_only=True)
    held = reference.acknowledged[trial.kills[0]]
    if result["resumed_from"] < held:
        return f"a finished save held {held} micro-steps, and it went on from {result['resumed_from']}"
    return difference(result["same"], reference.same)


def difference(got: Any, want: Any, path: str = "") -> str | None:
    """The first place where two results differ in a bit, or None."""
    if type(got) is not type(want):
        return f"{path}: {type(got).__name__}, expected {type(want).__name__}"
    if isinstance(want, torch.Tensor):
        same = got.dtype == want.dtype and got.shape == want.shape and torch.equal(got, want)
        return None if same else f"{path}: the tensors differ"
    if isinstance(want, Mapping):
        if list(got) != list(want):
            return f"{path}: keys {list(got)}, expected {list(want)}"
        pairs = [(f"{path}[{key!r}]", got[key], want[key]) for key in want]
    elif isinstance(want, list | tuple):
        if len(got) != len(want):
            return f"{path}: {len(got)} entries, expected {len(want)}"
        pairs = [(f"{path}[{i}]", g, w) for i, (g, w) in enumerate(zip(got, want, strict=True))]
    else:
        return None if got == want else f"{path}: {got!r}, expected {want!r}"
    return next((found for where, g, w in pairs if (found := difference(g, w, where))), None)


# ---------------------------------------------------------------------------------------------- processes


def _forked(options: Options) -> int:
    """Run the program in a child; returns its exit status, −9 where it was killed."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.setpgid(0, 0)
            log = os.open(options.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(log, 1), os.dup2(log, 2)
            run(options)
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    deadline = time.monotonic() + LIMIT
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGTERM)
            deadline += 1e9
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # its data-loading workers would notice only after some seconds
    return os.waitstatus_to_exitcode(status)


def _fresh(options: Options) -> int:
    """The same in a Python of its own, with hashes of its own."""
    command = [sys.executable, "-m", "testcases.torture.program", *options.arguments()]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONHASHSEED="random")
    with open(options.folder / "log.txt", "w") as log:
        return subprocess.run(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=LIMIT, check=False
        ).returncode


def _words(status: int, folder: Path) -> str:
    lines = [line for line in (folder / "log.txt").read_text(errors="replace").splitlines() if line.strip()]
    ended = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return f"{ended} ({lines[-1][:300]})" if lines else ended


def _print_table(tried: Counter, identical: Counter, seed: int, device: str, seconds: float) -> None:
    width = max(map(len, tried))
    print(f"{'killed at':<{width}}  {'tried':>6}  {'bit-identical':>14}")
    for kind in tried:
        print(f"{kind:<{width}}  {tried[kind]:>6}  {identical[kind]:>14}")
    print(f"{'all':<{width}}  {tried.total():>6}  {identical.total():>14}")
    print(f"seed {seed}, device {device}, {seconds:.0f} s")
