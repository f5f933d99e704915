"""Before the first collective operation: do all processes mean the same run? Then they become one group.

Used by __main__.py and run.py: ``meeting = meet(timeout)``, ``meeting.compare(facts)``, ``meeting.begin(device)``;
``meeting.refuse(error)`` where a process cannot take part.

Ranks that disagree (on the step to go on from, say) pair their operations wrongly, without an error, and with a
wrong result. Until all agree they talk through a store of texts alone, which pairs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.utils.data import Dataset

from training.distributed import ManyRanks, PeerLost, Ranks

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

GRACE = timedelta(seconds=10)  # for the others to read why the run does not begin
AGREED = "agreed"


class Meeting:
    """The processes of a run, before it begins.

    Args:
        ranks: who takes part.
        store: what they write to and read from; None for one process, which has nobody to ask.
        timeout: how long one waits for another.

    Attributes:
        local_rank: the number of this process on its machine, which is that of its GPU.
    """

    def __init__(self, ranks: Ranks, store: Store | None = None, timeout: float = 600) -> None:
        self.ranks = ranks
        self.local_rank = int(os.environ.get("LOCAL_RANK", ranks.rank))
        self._store = store
        self._timeout = timedelta(seconds=timeout)
        self._published = False

    def compare(self, facts: dict[str, Any]) -> None:
        """Publish what this process means to do. Rank 0 waits for all facts, and compares.

        Args:
            facts: name of the thing → plain value, which must be the same on all ranks.

        Raises:
            ValueError: on rank 0: who cannot take part and why, or who differs and in what.
            PeerLost: a rank did not come within the timeout.
        """
        if self._store is None:
            return
        ours = {"number of processes": self.ranks.world_size, **facts}
        self._publish({"facts": ours})
        if not self.ranks.is_main:
            return
        for rank in range(1, self.ranks.world_size):
            theirs = json.loads(self._read(f"facts/{rank}", f"rank {rank}"))
            if "problem" in theirs:
                raise ValueError(f"rank {rank}: {theirs['problem']}")
            for name, value in json.loads(json.dumps(ours)).items():
                if theirs["facts"].get(name) != value:
                    other = _differences(theirs["facts"].get(name), value)
                    raise ValueError(f"rank {rank} has another {name} than rank 0: {other}")

    def begin(self, device: torch.device) -> None:
        """Become a group, once rank 0 is ready: it comes here last, after it has opened the output.

        Raises:
            Refused: rank 0 has said why not.
            PeerLost: a rank did not come within the timeout.
        """
        if self._store is None:
            return
        if self.ranks.is_main:
            self._store.set("verdict", AGREED)
        elif self._read("verdict", "rank 0") != AGREED:
            raise Refused
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with _waiting("the other processes", self._timeout):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl"
                if device.type == "cuda"
                else "gloo",  # texts and counts stay in host memory
                store=PrefixStore("group", self._store),
                rank=self.ranks.rank,
                world_size=self.ranks.world_size,
                timeout=self._timeout,
            )

    def refuse(self, error: Exception) -> None:
        """This process cannot take part: rank 0 says why, in one sentence, and all processes end."""
        if self.ranks.is_main:
            print(error, file=sys.stderr, flush=True)  # first: a launcher ends all as soon as one has ended
        if self._store is None:
            return
        if self.ranks.is_main:
            self._store.set("verdict", "refused")
            with _impatient():
                self._store.wait([f"read/{rank}" for rank in range(1, self.ranks.world_size)], GRACE)
            return
        if not self._published:
            self._publish({"problem": str(error)})
        if not isinstance(error, Refused):
            self._read("verdict", "rank 0")
        self._store.set(f"read/{self.ranks.rank}", "")

    def _publish(self, content: dict[str, Any]) -> None:
        assert self._store is not None
        self._published = True
        self._store.set(f"facts/{self.ranks.rank}", json.dumps(content))

    def _read(self, key: str, who: str) -> str:
        assert self._store is not None
        with _waiting(who, self._timeout):
            return self._store.get(key).decode()


class Refused(ValueError):
    """Rank 0 has said why the run does not begin."""


def meet(timeout: float) -> Meeting:
    """The processes that the launcher has started, by its environment: RANK, WORLD_SIZE, MASTER_ADDR, ….

    Raises:
        ValueError: the environment is incomplete.
        PeerLost: the store could not be reached.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Meeting(Ranks())
    with _waiting("the other processes", timedelta(seconds=timeout)):
        store, rank, world_size = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
    # The store outlives a restart by the launcher; what an earlier attempt wrote into it does not count.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"attempt-{attempt}", store)
    store.set_timeout(timedelta(seconds=timeout))
    return Meeting(ManyRanks(rank, world_size), store, timeout)


def pick_device(name: str, meeting: Meeting) -> torch.device:
    """The device of that name; "auto" takes CUDA where there is one, else the CPU. Each process has a GPU of its own.

    Raises:
        ValueError: it cannot be used; one GPU for several processes; fewer GPUs than processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if meeting.ranks.world_size > 1 and name != "cpu":
        if name != "cuda":
            raise ValueError(f"device {name!r} is one for all processes; try --device cuda, or --device cpu")
        if meeting.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"there are {torch.cuda.device_count()} GPUs, and none for process {meeting.local_rank} of this "
                "machine; start fewer, or try --device cpu"
            )
        name = f"cuda:{meeting.local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # meta tensors, too, end here
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used here; try --device cpu") from error
    return device


def fingerprint(dataset: Dataset[Any], rows: int = 256) -> str:
    """How many rows, and SHA-256 over some that are spread evenly over all of them: enough to tell files apart."""
    size = len(dataset)  # type: ignore[arg-type]
    digest = hashlib.sha256()
    for index in range(0, size, max(1, size // rows)):
        for name, value in sorted(dataset[index].items()):
            digest.update(name.encode())
            digest.update(
                value.cpu().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode()
            )
    return f"{size} rows, {digest.hexdigest()[:12]}"


def _differences(theirs: Any, ours: Any) -> str:
    """What differs, each as "name theirs instead of ours"."""
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return f"{theirs} instead of {ours}"
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    return ", ".join(f"{name} {theirs.get(name)} instead of {ours.get(name)}" for name in names)


@contextmanager
def _waiting(who: str, timeout: timedelta) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        seconds = timeout.total_seconds()
        raise PeerLost(f"{who} did not come, or ended; --timeout is {seconds:.0f} seconds") from error


@contextmanager
def _impatient() -> Iterator[None]:
    """Whoever does not answer in time is not waited for."""
    try:
        yield
    except dist.DistError:
        return
