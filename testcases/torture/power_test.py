"""The model of the disk in power.py is as pessimistic as it says; and the rows of five modules notice mistakes.

Run: pytest testcases/torture/power_test.py. The rows themselves run in matrix_test.py.
"""

import os
import random
import subprocess
import sys

import pytest

from course.registry import ROOT
from testcases.torture.disk import PAGE, Disk
from testcases.torture.disk import ROOT as TOP
from testcases.torture.protocols import manager_class
from testcases.torture.recorder import recorded
from training import durable


@pytest.fixture
def disk():
    return Disk(random.Random(0))


def contents(disk: Disk, name: str) -> set[bytes | None]:
    return {tree.get(name) for tree in disk.states()}


# ---- the model


def test_unsynced_data_may_be_missing_zero_torn_or_there_in_any_pages(disk):
    inode = disk.create(TOP, "a")
    disk.write(inode, 0, b"x" * 2 * PAGE)
    x, zero = b"x" * PAGE, bytes(PAGE)
    half, half_zero = x[: PAGE // 2], zero[: PAGE // 2]
    assert contents(disk, "a") == {
        *(None, b"", half, x, x + half, x + x),
        *(zero + zero, x + zero, zero + x),
        *(half + half_zero + x, x + half + half_zero),
    }


def test_fsync_of_a_file_keeps_its_data_and_not_its_name(disk):
    disk.write(inode := disk.create(TOP, "a"), 0, b"x")
    disk.fsync(inode)
    assert contents(disk, "a") == {None, b"x"}
    disk.fsync(TOP)
    assert contents(disk, "a") == {b"x"}


def test_rename_before_fsync_may_leave_the_new_name_without_data(disk):
    disk.write(inode := disk.create(TOP, "a"), 0, b"x")
    disk.rename(inode, (TOP, "a"), (TOP, "b"))
    disk.fsync(TOP)
    assert contents(disk, "b") == {b"", b"\0", b"x"}


def test_rename_over_an_older_file_leaves_one_of_the_two_and_never_nothing(disk):
    disk.write(disk.create(TOP, "b"), 0, b"old")
    disk.settle()
    disk.write(inode := disk.create(TOP, "a"), 0, b"new")
    disk.fsync(inode)
    disk.rename(inode, (TOP, "a"), (TOP, "b"))
    assert contents(disk, "b") == {b"old", b"new"}
    assert contents(disk, "a") == {None, b"new"}


def test_two_unlinks_may_reach_the_disk_in_either_order(disk):
    for name in "ab":
        disk.create(TOP, name)
    disk.settle()
    for name in "ab":
        disk.unlink(TOP, name)
    assert {frozenset(tree) for tree in disk.states()} == {frozenset(names) for names in ("", "a", "b", "ab")}


def test_what_a_failed_fsync_dropped_is_not_written_by_the_next_one(disk):
    disk.write(inode := disk.create(TOP, "a"), 0, b"x")
    disk.fsync(TOP)
    disk.fsync(inode, works=False)
    disk.fsync(inode)
    assert contents(disk, "a") == {b"", b"\0", b"x"}
    disk.write(inode, 1, b"y")
    disk.fsync(inode)
    assert {bytes(content)[1:] for content in contents(disk, "a")} == {b"y"}


def test_a_file_in_a_folder_whose_own_name_is_not_durable_may_be_gone(disk):
    folder = disk.make_folder(TOP, "run")
    disk.fsync(disk.create(folder, "a"))
    disk.fsync(folder)
    assert contents(disk, "run/a") == {None, b""}
    disk.fsync(TOP)
    assert contents(disk, "run/a") == {b""}


def test_too_many_states_are_sampled_and_counted(disk):
    disk.limit = 50
    for number in range(12):
        disk.create(TOP, str(number))
    found = list(disk.states())
    assert 50 < len(found) < 200
    assert disk.sampled == 1
    assert {} in found
    assert max(map(len, found)) == 12


def test_recorder_notices_that_it_missed_an_operation(disk, tmp_path):
    with recorded(tmp_path, disk, lambda: None):
        durable.write_with_digest(tmp_path / "a", lambda file: file.write(b"x"))
    with (
        pytest.raises(AssertionError, match="missed an operation"),
        recorded(tmp_path, disk, lambda: None),
        open(tmp_path / "b", "wb"),
    ):
        pass


def test_a_planted_error_whose_place_has_changed_is_refused():
    with pytest.raises(ValueError, match=r"training\.durable has 0 times"):
        manager_class([(durable, "no such line", "")])


# ---- mistakes in training/ that the rows must notice


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(
    ("module", "mistake", "notices"),
    [
        pytest.param(
            "damage",
            "from training import checkpoint_file as c\n"
            "class All(set): __contains__ = lambda *_: True\n"
            "c._digest_lines = lambda path: All()",
            "it was not refused",
            id="a resume that does not hash",
        ),
        pytest.param(
            "selection",
            "from training import checkpoint as c\n"
            "c.find_checkpoints = lambda f: sorted(f.glob('epoch_*.pt'), reverse=True)",
            "more digits 9900 and 10000: step",
            id="names sorted as letters",
        ),
        pytest.param(
            "selection",
            "from training import checkpoint as c\n"
            "c.find_checkpoints = lambda f: sorted(f.glob('epoch_*.pt'), key=lambda p: -p.lstat().st_mtime)",
            "clock runs backwards: step 99 was taken",
            id="sorted by the clock",
        ),
        pytest.param(
            "selection",
            "from training import checkpoint_file as c; c.open_regular = lambda path: open(path, 'rb')",
            "checkpoint is a fifo: it hung",
            id="waits for a FIFO",
        ),
        pytest.param(
            "stops",
            "from training import state; state.set_rng_state = lambda saved: None",
            ": .rng",
            id="generators not restored",
        ),
        pytest.param(
            "stops",
            "from training import sampler; sampler.DataCursor.load_state_dict = lambda self, state: None",
            "Stop(name=",
            id="place in the data not restored",
        ),
        pytest.param(
            "nonfinite",
            "import torch; from training import trainer as t; real = t.clip_gradients\n"
            "t.clip_gradients = lambda p, m: real(p, m).nan_to_num(1.0, 1.0, 1.0)",
            "NaN in the loss is left out: the update was made",
            id="steps with NaN",
        ),
        pytest.param(
            "nonfinite",
            "from training import checkpoint as c, checkpoint_file as f; c.is_finite = f.is_finite = lambda s: True",
            "NaN in a weight ends the run: ",
            id="NaN counts as good",
        ),
    ],
)
def test_rows_notice(module, mistake, notices, tmp_path):
    """In a process of its own: it forks, and pytest's may have run a backward pass."""
    code = (
        f"{mistake}\n"
        "import sys, pathlib\n"
        "from testcases.torture import damage, matrix, nonfinite, stops\n"
        f"from testcases.torture import {module} as m\n"
        "stops.SAMPLE, damage.SAMPLE = 6, 200\n"
        "few = [name for name in nonfinite.CASES if name.startswith('NaN in')][:4]\n"
        "nonfinite.CASES = {name: nonfinite.CASES[name] for name in few}\n"
        "for row in m.rows(matrix.Budget(True, 1, pathlib.Path(sys.argv[1]))):\n"
        "    print(*row.failures, sep='\\n')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert notices in done.stdout, done.stdout + done.stderr
