"""Kills and torn writes: before every operation of a save, and in the middle of every write.

After each: the older or the newer one loads, never neither, never a mixture, and what was acknowledged is never gone;
the next save works and cleans up.
"""

from __future__ import annotations

from collections.abc import Iterator

from testcases.torture.cases import LARGE, SMALL, OneFile
from testcases.torture.injector import Fault, Operation
from testcases.torture.matrix import Budget, Row
from testcases.torture.rotation import runs
from testcases.torture.savers import OURS, PEERS, lessons
from testcases.torture.sweep import swept
from testcases.torture.system_calls import WRITES

SAMPLED = 4  # faults of each case in the sampled part


def rows(budget: Budget) -> Iterator[Row]:
    peers = {peer.name: [OneFile(peer, peer, size, tidy=False) for size in (SMALL, LARGE)] for peer in PEERS}
    plain = PEERS[0]
    files = [OneFile(OURS, None), OneFile(OURS, OURS), OneFile(OURS, plain), OneFile(OURS, OURS, LARGE)]
    ours = runs()
    taught = [OneFile(saver, older) for saver in lessons() for older in (None, saver)]
    yield swept("kill or torn write: one file", files, faults, budget, 115, SAMPLED, peers)
    yield swept("kill or torn write: rotation and best", ours[:2], faults, budget, 340, SAMPLED)
    yield swept("kill or torn write: asynchronous save", ours[2:4], faults, budget, 340, SAMPLED)
    yield swept("kill or torn write: lessons 08 and 09", [*taught, *ours[4:]], faults, budget, 480, SAMPLED)


def faults(operations: list[Operation]) -> list[Fault]:
    """Before every operation that changes anything; and behind half the bytes of a write, and all but one."""
    found = []
    for at, operation in enumerate(operations):
        if operation.changes:
            found.append(Fault(at, kill=True))
        if operation.name in WRITES:
            found += [Fault(at, kill=True, size=size) for size in (operation.size // 2, operation.size - 1)]
    return found
