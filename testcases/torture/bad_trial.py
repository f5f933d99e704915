"""One trial of a bad input: the program in a child, what it did and needed, and whether that is right.

Used by bad_inputs.py.
"""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from testcases.torture.bad_files import MARKER, Case, Place
from testcases.training.work import ROOT
from training.__main__ import main as training_main

SECONDS = 2.0  # of the processor: the clock of a busy machine says nothing about the program
MEBIBYTE = 2**20
ALLOWANCE = 64 * MEBIBYTE  # besides twice the size of the input
LIMIT = 60.0  # seconds on the clock: more is a hang, even on a busy machine
LONGEST = 500  # characters of a sentence


@dataclass(frozen=True)
class Outcome:
    """What became of a trial. seconds: of the processor; peak: bytes of memory over the start; size: the input."""

    status: int
    out: str
    err: str
    seconds: float
    peak: int
    size: int

    @property
    def sentence(self) -> str:
        return self.err.rstrip("\n") or self.out.rstrip("\n")


def attempt(case: Case, place: Place) -> tuple[Outcome, list[str]]:
    """Make the input in place.folder, give it to the program; what happened, and what was wrong with that."""
    shutil.rmtree(place.folder)
    place.folder.mkdir()
    argv = case.make(place)
    before = {**tree(place.folder), **tree(place.run)}
    size = sum(os.lstat(path).st_blocks * 512 for path in place.folder.rglob("*"))
    outcome = fresh(argv, place, size) if case.fresh else forked(argv, place, size)
    problems = judge(case, outcome)
    after = {**tree(place.folder), **tree(place.run)}
    if changed := sorted(
        path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    ):
        ran = "code of the file ran; " if any(MARKER in path for path in changed) else ""
        problems.append(f"{ran}touched: {', '.join(changed[:3])}")
    return outcome, problems


def judge(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with an outcome, a clause each."""
    problems = []
    sentence, other = (outcome.err, outcome.out) if case.status == 2 else (outcome.out, outcome.err)
    if outcome.status != case.status:
        problems.append(f"exit status {outcome.status}" if outcome.status != -signal.SIGKILL else "it hangs")
    if "Traceback" in outcome.err:
        problems.append(f"a traceback: {outcome.err.strip().splitlines()[-1][:200]}")
    elif case.status == 2 and sentence.count("\n") != 1:
        problems.append(f"{sentence.count(chr(10))} lines on stderr: {sentence[:300]!r}")
    if other:
        problems.append(f"also printed: {other[:200]!r}")
    if len(sentence) > LONGEST or not sentence.rstrip("\n").replace("\n", "").isprintable():
        problems.append(f"not a sentence to read: {len(sentence)} characters")
    if case.says not in sentence:
        problems.append(f"it does not say {case.says!r}: {sentence[-200:]!r}")
    if outcome.seconds > SECONDS:
        problems.append(f"{outcome.seconds:.1f} s")
    if outcome.peak > 2 * outcome.size + ALLOWANCE:
        problems.append(f"{outcome.peak / MEBIBYTE:.0f} MiB for a file of {outcome.size / MEBIBYTE:.1f} MiB")
    return problems


def tree(folder: Path) -> dict[str, tuple]:
    """Everything below a folder: kind, size, times and bytes. Opens nothing but regular files."""
    found: dict[str, tuple] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        about = os.lstat(path)
        content = None
        if stat.S_ISREG(about.st_mode):
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest() if about.st_blocks else None
        found[str(path)] = (about.st_mode, about.st_size, about.st_mtime_ns, about.st_ino, content)
    return found


def forked(
    argv: list[str], place: Place, size: int, program: Callable[[list[str]], int] = training_main
) -> Outcome:
    """`program(argv)` in a child of this process, which has imported torch and never run a backward pass."""
    output, errors, peak = (place.scratch / name for name in ("stdout", "stderr", "peak"))
    peak.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_the_program(partial(program, argv), place.folder, output, errors, peak, size)
    deadline = time.monotonic() + LIMIT
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    return Outcome(
        os.waitstatus_to_exitcode(status),
        output.read_text(errors="replace"),
        errors.read_text(errors="replace"),
        usage.ru_utime + usage.ru_stime,
        int(peak.read_text()) if peak.exists() else 0,
        size,
    )


def _be_the_program(
    program: Callable[[], int], folder: Path, output: Path, errors: Path, peak: Path, size: int
) -> NoReturn:
    status = 70
    try:
        for number, path in ((1, output), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        logging.disable(logging.NOTSET)
        logging.getLogger().handlers.clear()  # a fresh program has none
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115 (pytest has its own)
        os.chdir(folder)
        before = memory("VmRSS")
        limit = memory("VmSize") + 2 * size + 3 * 2**30  # what is not refused must not fill the machine
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        try:
            status = program()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        peak.write_text(str(memory("VmHWM") - before))
    finally:
        os._exit(status)


def memory(field: str) -> int:
    """Bytes, from /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def fresh(argv: list[str], place: Place, size: int) -> Outcome:
    """The real command. Its time and memory are mostly those of importing torch, and not judged."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1")
    command = [sys.executable, "-m", "training", *argv]
    options = {"cwd": place.folder, "env": environment, "capture_output": True, "text": True, "timeout": 60}
    try:
        done = subprocess.run(command, check=False, **options)
    except subprocess.TimeoutExpired:
        return Outcome(-signal.SIGKILL, "", "", 0.0, 0, size)
    return Outcome(done.returncode, done.stdout, done.stderr, 0.0, 0, size)
