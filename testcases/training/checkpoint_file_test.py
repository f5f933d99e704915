"""Tests of one checkpoint file: training/checkpoint_file.py; see also checkpoint_kill_test.py."""

import errno
import os
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from testcases.training.checkpoint_faults import flip, litter, make_state, value_of
from training.checkpoint import (
    CheckpointError,
    digest_path,
    examine,
    load_checkpoint,
    save_checkpoint,
    snapshot,
    verify_checkpoint,
)

# ---- saved and read back


def test_state_comes_back_bit_for_bit_and_owes_nothing_to_the_module_that_saved_it(tmp_path):
    path = tmp_path / "new" / "folder" / "epoch_1_step_1.pt"
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = {
        "model_state_dict": model.state_dict(),
        "milestones": Counter([2, 2, 5]),
        "numbers": [1, -0.0, float("nan"), 2**70, True, None, (1, "ü"), {1, 2}, b"\0", torch.Size([2])],
        "dtypes": {
            str(dtype): torch.ones(2, dtype=dtype) for dtype in (torch.bfloat16, torch.uint8, torch.int64)
        },
    }
    save_checkpoint(state, path)
    loaded = load_checkpoint(path)
    assert repr(loaded) == repr(state)
    assert loaded["model_state_dict"]._metadata == model.state_dict()._metadata
    assert type(loaded["model_state_dict"]) is OrderedDict
    assert litter(path.parent) == []


def test_plain_torch_load_and_sha256sum_agree_without_this_package(tmp_path):
    path = tmp_path / "epoch_1_step_1.pt"
    for value in (1.0, 2.0):  # the second one over the first
        save_checkpoint(make_state(value), path)
    if sys.platform != "win32":
        check = subprocess.run(
            ["sha256sum", "--strict", "-c", digest_path(path).name],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert (check.returncode, check.stdout, check.stderr) == (0, "epoch_1_step_1.pt: OK\n", "")
    code = "import sys, torch; print(torch.load(sys.argv[1])['model_state_dict']['w'].sum().item())"
    bare = subprocess.run([sys.executable, "-I", "-c", code, str(path)], capture_output=True, text=True)
    assert bare.stdout == "32.0\n", bare.stderr
    assert zipfile.ZipFile(path).testzip() is None


def test_file_of_a_plain_torch_script_loads_with_a_warning_and_does_not_verify(tmp_path, caplog):
    path = tmp_path / "epoch_5_step_5000.pt"
    torch.save(make_state(3.0), path)
    assert value_of(load_checkpoint(path)) == 3.0
    assert "could not be verified" in caplog.text
    with pytest.raises(CheckpointError, match=r"there is no epoch_5_step_5000\.pt\.sha256"):
        verify_checkpoint(path)
    report = examine(path)
    assert report.loadable
    assert "cannot be verified" in report.problem


# ---- the snapshot


def test_snapshot_shares_no_memory_and_copies_tied_and_sliced_tensors_once_and_small():
    base = torch.arange(1000.0)
    state = {
        "slice": base[:3],
        "tied": base[:3],
        "other": base[1:4],
        "conj": torch.ones(2, dtype=torch.cfloat).conj(),
    }
    copy = snapshot(state)
    base.fill_(-1)
    assert copy["slice"].tolist() == [0, 1, 2]
    assert copy["other"].tolist() == [1, 2, 3]
    assert copy["tied"] is copy["slice"]
    assert copy["slice"].untyped_storage().nbytes() == 12
    assert snapshot(nn.Linear(2, 2).weight).requires_grad is False


def test_snapshot_into_an_older_one_reuses_its_memory_but_never_for_two_tensors():
    tied = torch.ones(3)
    old = snapshot({"a": tied, "b": tied, "c": torch.ones(3), "d": torch.ones(2), "e": [torch.ones(1)]})
    memory = old["c"]
    new = snapshot(
        {
            "a": torch.full((3,), 2.0),
            "b": torch.full((3,), 3.0),
            "c": torch.full((3,), 4.0),
            "d": torch.zeros(5),
        },
        old,
    )
    assert [new[name].tolist() for name in "abc"] == [[2.0] * 3, [3.0] * 3, [4.0] * 3]
    assert new["c"] is memory
    assert new["d"].shape == (5,)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (np.zeros(2), "state.a.b is a ndarray"),
        (Path("x"), "state.a.b is a PosixPath" if os.name == "posix" else "state.a.b is a WindowsPath"),
        (errno, "state.a.b is a module"),
        ({(1, 2): 3}, r"state.a.b has the key \(1, 2\)"),
        ([0, lambda: 0], "state.a.b.1 is a function"),
        (torch.eye(2).to_sparse(), "state.a.b is a Tensor"),
    ],
)
def test_value_that_safe_loading_would_refuse_is_refused_before_anything_is_written(tmp_path, value, place):
    path = tmp_path / "x.pt"
    with pytest.raises(ValueError, match=place):
        save_checkpoint({"a": {"b": value}}, path)
    assert list(tmp_path.iterdir()) == []


def test_scalars_of_numpy_become_plain(tmp_path):
    save_checkpoint({"loss": np.float64(0.1), "n": np.int64(3), "yes": np.bool_(True)}, tmp_path / "x.pt")
    loaded = load_checkpoint(tmp_path / "x.pt")
    assert loaded == {"loss": 0.1, "n": 3, "yes": True}
    assert [type(value) for value in loaded.values()] == [float, int, bool]


# ---- damage and foreign files


def test_flipped_bit_in_every_byte_of_the_file_and_of_the_digest_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    save_checkpoint({"w": torch.ones(3)}, path)
    for position in range(path.stat().st_size):
        flip(path, position, position % 8)
        with pytest.raises(CheckpointError, match="damaged"):
            verify_checkpoint(path)
        if position % 50 == 0:
            with pytest.raises(CheckpointError, match="damaged"):
                load_checkpoint(path)
        flip(path, position, position % 8)
    for position in range(64):
        flip(digest_path(path), position, position % 5)  # bit 5 makes a letter large: the same number
        with pytest.raises(CheckpointError, match="damaged"):
            verify_checkpoint(path)
        flip(digest_path(path), position, position % 5)
    verify_checkpoint(path)


def test_truncated_extended_empty_and_swapped_files_are_refused(tmp_path):
    path, other = tmp_path / "x.pt", tmp_path / "y.pt"
    save_checkpoint(make_state(1.0), path)
    save_checkpoint(make_state(2.0), other)
    whole = path.read_bytes()
    for content in [whole[:n] for n in range(0, len(whole), 512)] + [whole + b"\0", other.read_bytes()]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(path)
    path.write_bytes(whole)
    for content in (b"", b"\n", b"\xff\xfe", digest_path(other).read_bytes()):
        digest_path(path).write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(path)


class Runs:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


def deflated(path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: torch.save({"x": Runs()}, path), "cannot be loaded safely"),
        (lambda path: torch.save({"x": bytearray(3)}, path), "bytearray"),
        (lambda path: torch.save([1], path), "a list and not a dict"),
        (lambda path: path.write_bytes(b"text"), "cannot be loaded safely"),
        (lambda path: path.write_bytes(b""), "cannot be loaded safely"),
        (deflated, "larger than the file"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: None, "does not exist"),
    ],
    ids=["code", "bytearray", "list", "text", "empty", "deflated", "folder", "missing"],
)
def test_unsafe_and_foreign_files_are_refused_in_one_sentence(tmp_path, monkeypatch, make, reason):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pt"
    make(path)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert reason in examine(path).problem


def test_reader_of_a_file_that_is_replaced_meanwhile_takes_the_new_one(tmp_path, monkeypatch):
    from training import checkpoint_file

    path = tmp_path / "x.pt"
    save_checkpoint(make_state(1.0), path)
    real = checkpoint_file._digest_lines
    monkeypatch.setattr(
        checkpoint_file,
        "_digest_lines",
        lambda name: (monkeypatch.undo(), save_checkpoint(make_state(2.0), path), real(name))[-1],
    )
    assert value_of(load_checkpoint(path)) == 2.0


def test_unreadable_digest_is_an_error_and_not_a_missing_one(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(make_state(1.0), path)
    digest_path(path).mkdir()
    with pytest.raises(CheckpointError, match="sha256 cannot be read"):
        load_checkpoint(path)
