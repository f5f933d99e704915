"""What the injector sees, held against strace: every system call that touches a file below the folder, in order.

A call that the injector does not know is in strace's list and not in the injector's: that is what this is for.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from testcases.torture.cases import LARGE, Case, OneFile
from testcases.torture.injector import LOOK_AGAIN, LOOK_AWAY, be_child, run
from testcases.torture.matrix import Budget, Row
from testcases.torture.ptrace import unavailable
from testcases.torture.rotation import runs
from testcases.torture.savers import OURS, PEERS, lessons

SET_PTRACER, ANYBODY = 0x59616D61, -1  # prctl(2): else only an ancestor may attach
CALL = re.compile(r"^\d+ +(\w+)\((.*)$")
SAID = re.compile(rf'write\(\d+<{re.escape(os.devnull)}>, "(.)')
TO_WRITE = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")


def rows(budget: Budget) -> Iterator[Row]:
    name, bar = "operations seen = those of strace", 500
    reason = unavailable() or (None if shutil.which("strace") else "strace is not installed")
    if reason:
        yield Row(name, 0, bar, [], 0.0, note=reason, skipped=True)
        return
    began = time.monotonic()
    cases: list[Case] = [OneFile(OURS, OURS), *runs()[1::2], *(OneFile(saver, saver) for saver in lessons())]
    cases += [OneFile(peer, peer, LARGE) for peer in PEERS]
    if budget.sample:
        cases = cases[:1] + cases[2:3] + cases[-1:]
    count, failures = 0, []
    for case in cases:
        compared, difference = compare(case, budget.folder / "seen")
        count += compared
        failures += [] if difference is None else [f"{case.name}: {difference}"]
    yield Row(name, count, bar, failures, time.monotonic() - began)


def compare(case: Case, base: Path) -> tuple[int, str | None]:
    """The same work twice, seen by either. Returns how many operations there were, and the first difference."""
    lists = []
    for look in (_by_injector, _by_strace):
        folder = base / "work"
        folder.mkdir(parents=True)
        case.prepare(folder)
        lists.append(look(case, folder, base / "strace.txt"))
        shutil.rmtree(base)
    for number, (ours, theirs) in enumerate(zip_longest(*lists)):
        if ours != theirs:
            return len(lists[1]), f"operation {number}: the injector sees {ours}, strace {theirs}"
    return len(lists[1]), None if lists[1] else "strace sees nothing"


def _by_injector(case: Case, folder: Path, _: Path) -> list[str]:
    traced = run(lambda say: case.work(folder, say), folder)
    return [_normal(f"{each.name} {each.path}") for each in traced.operations]


def _by_strace(case: Case, folder: Path, log: Path) -> list[str]:
    """The child waits for a byte until strace has attached."""
    starting, go = os.pipe()
    child = os.fork()
    if child == 0:
        be_child(
            lambda say: case.work(folder, say), os.open(os.devnull, os.O_WRONLY), lambda: _wait(starting)
        )
    try:
        command = ["strace", "-f", "-y", "-s", "1", "-o", str(log), "-p", str(child)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            assert strace.stderr is not None
            first = strace.stderr.readline()
            if "attached" not in first:
                raise OSError(f"strace: {first.strip()}")
            os.write(go, b"!")
            _, status = os.waitpid(child, 0)
            strace.wait(timeout=30)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(starting), os.close(go)
    if status != 0:
        raise OSError(f"{case.name}, under strace, ends with {os.waitstatus_to_exitcode(status)}")
    return list(_calls(log.read_text(errors="replace"), os.path.realpath(folder)))


def _wait(descriptor: int) -> None:
    ctypes.CDLL(None).prctl(SET_PTRACER, ANYBODY, 0, 0, 0)
    os.read(descriptor, 1)


def _calls(text: str, folder: str) -> Iterator[str]:
    below = re.compile(rf'["<]({re.escape(folder)}(?:/[^">]*)?)[">]')
    counts = True
    for line in text.splitlines():
        match = CALL.match(line)  # not of "<... write resumed>", whose beginning is another line
        if match is None:
            continue
        if said := SAID.search(line):
            counts = said[1] == LOOK_AGAIN if said[1] in (LOOK_AWAY, LOOK_AGAIN) else counts
        name, arguments = match[1], match[2].rpartition(" = ")[0] or match[2]
        if name in ("open", "openat") and TO_WRITE.search(arguments):
            name = "creat"
        paths = [path.removeprefix(folder).lstrip("/") or "." for path in below.findall(arguments)]
        if paths and counts:
            yield _normal(f"{name} {' → '.join(paths)}")


def _normal(text: str) -> str:
    """Temporary files have random names."""
    return re.sub(r"\.[0-9a-f]{8}\.saving", ".saving", text)
