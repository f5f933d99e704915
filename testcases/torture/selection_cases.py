"""What may lie in a folder of checkpoints, beside good ones of the steps 99 and 100; a function for each case.

Used by selection.py: ``case(folder)`` prepares the folder, and returns the step that a resume must take there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from testcases.training.checkpoint_faults import flip, killed_at, litter, make_state
from training import checkpoint
from training.checkpoint import CheckpointManager, digest_path, save_checkpoint

Case = Callable[[Path], int]


def at(folder: Path, step: int, value: float | None = None) -> Path:
    """A good checkpoint of this step; its tensors hold the step, or another value."""
    path = folder / f"epoch_1_step_{step}.pt"
    save_checkpoint(make_state(step if value is None else value) | {"global_step": step}, path)
    return path


def clock_runs_backwards(folder: Path) -> int:
    for age, path in enumerate(sorted(folder.iterdir())):
        os.utime(path, (1e9 - 1e6 * age, 1e9 - 1e6 * age))
    os.utime(folder / "epoch_1_step_100.pt", (0, 0))
    return 100


def clock_of_next_century(folder: Path) -> int:
    os.utime(folder / "epoch_1_step_99.pt", (4e9, 4e9))
    return 100


def more_digits_9900_and_10000(folder: Path) -> int:
    at(folder, 9900), at(folder, 10000)
    return 10000


def leading_zeros(folder: Path) -> int:
    save_checkpoint(make_state(7.0), folder / "epoch_1_step_0000000007.pt")
    return 100


def stale_link_named_latest(folder: Path) -> int:
    (folder / "latest").symlink_to("epoch_1_step_99.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text("99")
    return 100


def dangling_link_named_latest(folder: Path) -> int:
    (folder / "latest").symlink_to("epoch_1_step_500.pt")
    (folder / "epoch_latest.pt").symlink_to("epoch_1_step_500.pt")
    return 100


def checkpoint_is_a_dangling_link(folder: Path) -> int:
    (folder / "epoch_1_step_101.pt").symlink_to("gone.pt")
    return 100


def checkpoint_is_a_link_to_itself(folder: Path) -> int:
    path = folder / "epoch_1_step_101.pt"
    path.symlink_to(path.name)
    return 100


def checkpoint_is_a_good_link(folder: Path) -> int:
    at(folder / "elsewhere", 101)
    for name in ("epoch_1_step_101.pt", "epoch_1_step_101.pt.sha256"):
        (folder / name).symlink_to(folder / "elsewhere" / name)
    return 101


def checkpoint_is_a_folder(folder: Path) -> int:
    (folder / "epoch_1_step_101.pt").mkdir()
    (folder / "epoch_1_step_101.pt" / "data").write_text("")
    return 100


def checkpoint_is_a_fifo(folder: Path) -> int:
    os.mkfifo(folder / "epoch_1_step_101.pt")
    (folder / "epoch_1_step_101.pt.sha256").write_text("")
    return 100


def digest_is_a_fifo(folder: Path) -> int:
    digests = digest_path(at(folder, 101))
    digests.unlink()
    os.mkfifo(digests)
    return 100


def checkpoint_is_a_device(folder: Path) -> int:
    (folder / "epoch_1_step_101.pt").symlink_to("/dev/zero")  # as long as one cares to read
    return 100


def two_writers_at_once(folder: Path) -> int:
    children = [_fork(partial(_save_often, folder, epoch)) for epoch in (1, 2)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert statuses == [0, 0], statuses
    assert litter(folder) == [], litter(folder)
    return 219


def litter_of_kills(folder: Path) -> int:
    for number in range(6):
        killed_at(number, lambda: at(folder, 101), torn=True)
        save_checkpoint(make_state(1.0), folder / f"other_{number}.pt")
        (folder / f".epoch_1_step_10{number}.pt.0123abc{number}.saving").write_bytes(b"PK")
    return 100


def digest_without_file(folder: Path) -> int:
    at(folder, 101).unlink()
    return 100


def file_without_digest(folder: Path) -> int:
    digest_path(at(folder, 101)).unlink()
    return 100


def digest_in_capitals(folder: Path) -> int:
    digests = digest_path(at(folder, 101))
    digest, name = digests.read_text().split("  ")
    digests.write_text(f"{digest.upper()}  {name}")
    return 101


def digest_with_crlf(folder: Path) -> int:
    digests = digest_path(at(folder, 101))
    digests.write_bytes(digests.read_bytes().replace(b"\n", b"\r\n"))
    return 101


def digest_of_sha256sum_binary(folder: Path) -> int:
    digests = digest_path(at(folder, 101))
    digests.write_text(digests.read_text().replace("  ", " *"))
    return 101


def digest_is_empty(folder: Path) -> int:
    digest_path(at(folder, 101)).write_bytes(b"")
    return 100


def weights_are_nan(folder: Path) -> int:
    at(folder, 101, math.nan)
    return 100


def newest_is_empty(folder: Path) -> int:
    at(folder, 101).write_bytes(b"")
    (folder / "epoch_1_step_102.pt").write_bytes(b"")
    return 100


def several_newest_are_damaged(folder: Path) -> int:
    for step in (100, 101, 102, 103):
        flip(at(folder, step), 700)
    return 99


def all_but_the_best_are_damaged(folder: Path) -> int:
    save_checkpoint(make_state(50.0) | {"global_step": 50}, folder / "best_model.pt")
    for step in (99, 100):
        flip(folder / f"epoch_1_step_{step}.pt", 700)
    return 50


def permission_denied(folder: Path) -> int:
    path = at(folder, 101)
    path.chmod(0)
    return 101 if os.access(path, os.R_OK) else 100


def removed_between_scan_and_load(folder: Path) -> int:
    at(folder, 101)
    return 100


def removed_between_choice_and_load(folder: Path) -> int:
    at(folder, 101)
    return 100


def _fork(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        status = 3
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def _save_often(folder: Path, epoch: int) -> None:
    manager = CheckpointManager(folder, keep_last=2)
    for step in range(210, 220):
        manager.save(make_state(step), epoch, step, metric=1 / step)
        assert manager.wait() == []


CASES: tuple[Case, ...] = (
    clock_runs_backwards,
    clock_of_next_century,
    more_digits_9900_and_10000,
    leading_zeros,
    stale_link_named_latest,
    dangling_link_named_latest,
    checkpoint_is_a_dangling_link,
    checkpoint_is_a_link_to_itself,
    checkpoint_is_a_good_link,
    checkpoint_is_a_folder,
    checkpoint_is_a_fifo,
    digest_is_a_fifo,
    checkpoint_is_a_device,
    two_writers_at_once,
    litter_of_kills,
    digest_without_file,
    file_without_digest,
    digest_in_capitals,
    digest_with_crlf,
    digest_of_sha256sum_binary,
    digest_is_empty,
    weights_are_nan,
    newest_is_empty,
    several_newest_are_damaged,
    all_but_the_best_are_damaged,
    permission_denied,
    removed_between_scan_and_load,
    removed_between_choice_and_load,
)
# In these the newest file goes once this function has been called: (of a module or a class, its name).
MEANWHILE: dict[Case, tuple[Any, str]] = {
    removed_between_scan_and_load: (checkpoint, "find_checkpoints"),
    removed_between_choice_and_load: (CheckpointManager, "latest_valid"),
}
