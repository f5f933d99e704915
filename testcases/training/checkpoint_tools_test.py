"""Tests of `python -m training checkpoints …`: training/checkpoint_tools.py. Most call main() here."""

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch

from testcases.training.checkpoint_faults import flip, make_state
from training.__main__ import main
from training.checkpoint import load_checkpoint, save_checkpoint, verify_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five checkpoints: 10 to 30 good, 40 damaged, 50 saved by a plain script; and the best one."""
    folder = tmp_path / "run"
    for step in (10, 20, 30, 40):
        state = make_state(step) | {"global_step": step, "val_loss": 100 / step, "train_loss": 50 / step}
        save_checkpoint(state, folder / f"epoch_1_step_{step}.pt")
    flip(folder / "epoch_1_step_40.pt", 900)
    torch.save(make_state(50.0) | {"global_step": 50}, folder / "epoch_2_step_50.pt")
    save_checkpoint(make_state(20.0) | {"best_metric": 5.0}, folder / "best_model.pt")
    return folder


def run(capsys, *arguments: object) -> tuple[int, list[str], str]:
    code = main(["checkpoints", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_list_shows_every_file_in_order_with_its_numbers_and_why_it_is_not_valid(folder, capsys):
    code, lines, err = run(capsys, "list", folder)
    cells = [line.split() for line in lines]
    assert (code, err) == (0, "")
    assert cells[0] == ["file", "epoch", "step", "val_loss", "size", "valid"]
    assert cells[1] == ["epoch_1_step_10.pt", "1", "10", "10.0000", "0.0", "MiB", "yes"]
    assert [row[0].removesuffix(".pt")[-2:] for row in cells[1:]] == ["10", "20", "30", "40", "50", "el"]
    assert cells[4][:4] == ["epoch_1_step_40.pt", "-", "-", "-"]
    assert "no: is damaged" in lines[4]
    assert "no: cannot be verified" in lines[5]


def test_verify_names_the_bad_ones_and_exits_with_1_if_there_is_any(folder, capsys):
    code, lines, _ = run(capsys, "verify", folder)
    assert code == 1
    assert [line.split()[0] for line in lines] == ["good", "good", "good", "BAD", "BAD", "good"]
    assert "epoch_1_step_40.pt is damaged" in lines[3]
    code, lines, _ = run(capsys, "verify", folder / "epoch_1_step_10.pt", folder / "best_model.pt")
    assert (code, len(lines)) == (0, 2)


def test_prune_keeps_the_newest_good_ones_the_best_and_what_it_does_not_know(folder, capsys):
    before = everything(folder)
    code, lines, _ = run(capsys, "prune", folder, "--keep_last", 2, "--dry_run")
    assert (code, everything(folder)) == (0, before)
    assert lines == [f"would delete {folder / 'epoch_1_step_10.pt'}", "5 of 6 would stay."]
    code, lines, _ = run(capsys, "prune", folder, "--keep_last", 1)
    assert code == 0
    assert lines[-1] == "4 of 6 stay."
    left = sorted(path.name for path in folder.glob("*.pt"))
    assert left == ["best_model.pt", "epoch_1_step_30.pt", "epoch_1_step_40.pt", "epoch_2_step_50.pt"]


def test_extract_writes_weights_epoch_and_val_loss_alone(folder, tmp_path, capsys):
    out = tmp_path / "models" / "inference.pt"
    code, _, _ = run(capsys, "extract", folder / "epoch_1_step_20.pt", out)
    loaded = torch.load(out)
    assert code == 0
    assert {key: loaded[key] for key in ("epoch", "val_loss")} == {"epoch": 1, "val_loss": 5.0}
    assert set(loaded) == {"model_state_dict", "epoch", "val_loss"}
    assert loaded["model_state_dict"]["w"].tolist() == [[20.0] * 4] * 4
    verify_checkpoint(out)


def test_compare_puts_the_numbers_side_by_side_also_of_plain_files(folder, capsys):
    code, lines, err = run(capsys, "compare", folder / "epoch_1_step_10.pt", folder / "epoch_2_step_50.pt")
    assert code == 0
    assert lines[0].split() == ["file", "epoch", "step", "train_loss", "val_loss"]
    assert [line.split()[1:] for line in lines[1:]] == [
        ["1", "10", "5.0000", "10.0000"],
        ["1", "50", "2.5000", "1.5000"],
    ]
    assert "cannot be verified" in err


def test_backup_is_a_dated_verified_copy_and_a_second_one_replaces_nothing(folder, tmp_path, capsys):
    source, dest = folder / "best_model.pt", tmp_path / "new" / "backups"
    today = datetime.now()
    assert run(capsys, "backup", source, dest)[0] == 0
    assert run(capsys, "backup", source, dest)[0] == 0
    copies = sorted(dest.glob("*.pt"))
    assert len(copies) == 2
    assert f"best_model_{today:%Y%m%d}" in str(copies[0])
    for path in copies:
        assert path.read_bytes() == source.read_bytes()
        verify_checkpoint(path)
    run(
        capsys, "backup", folder / "epoch_2_step_50.pt", dest
    )  # from a plain script: it has a digest from here on
    verify_checkpoint(next(dest.glob("epoch_2_step_50_*.pt")))


BAD = [
    (["list", "{folder}/none"], "none is not a folder"),
    (["list", "{folder}/best_model.pt"], "is not a folder"),
    (["verify", "{folder}/none.pt"], "none.pt does not exist"),
    (["verify", "{empty}"], "There is no checkpoint in"),
    (["prune", "{folder}", "--keep_last", "0"], "--keep_last must be >= 1, got 0"),
    (["prune", "{folder}/none"], "is not a folder"),
    (["extract", "{folder}/none.pt", "{empty}/out.pt"], "none.pt does not exist"),
    (["extract", "{folder}/epoch_1_step_40.pt", "{empty}/out.pt"], "is damaged"),
    (["extract", "{folder}/epoch_1_step_10.pt", "{folder}/epoch_1_step_20.pt"], "exists already"),
    (["extract", "{folder}/epoch_1_step_10.pt", "{folder}"], "exists already"),
    (["extract", "{folder}/epoch_1_step_10.pt", "{folder}/best_model.pt/out.pt"], "best_model.pt"),
    (["compare", "{folder}/epoch_1_step_10.pt", "{folder}/epoch_1_step_40.pt"], "is damaged"),
    (["backup", "{folder}/epoch_1_step_40.pt", "{empty}"], "is damaged"),
    (["backup", "{folder}/none.pt", "{empty}"], "does not exist"),
    (["backup", "{folder}/best_model.pt", "{folder}/epoch_1_step_10.pt"], "is not a folder"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_sentence_and_touches_nothing(folder, tmp_path, capsys, arguments, sentence):
    (tmp_path / "empty").mkdir()
    before = everything(tmp_path)
    places = {"folder": folder, "empty": tmp_path / "empty"}
    code, lines, err = run(capsys, *[argument.format(**places) for argument in arguments])
    assert (code, lines) == (2, [])
    assert sentence in err
    assert err.count("\n") == 1
    assert everything(tmp_path) == before


def test_extract_without_weights_is_refused(tmp_path, capsys):
    save_checkpoint({"epoch": 1}, tmp_path / "x.pt")
    code, _, err = run(capsys, "extract", tmp_path / "x.pt", tmp_path / "y.pt")
    assert (code, "has no model_state_dict" in err) == (2, True)


@pytest.mark.parametrize("arguments", [[], ["lst"], ["prune"], ["prune", ".", "--keep_last", "x"]])
def test_flags_that_argparse_refuses_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["checkpoints", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.limit(60)
def test_process_verifies_and_help_does_not_wait_for_torch(folder):
    command = [sys.executable, "-m", "training", "checkpoints", "verify", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("good"), done.stderr) == (1, 4, "")
    code = "import sys, training.checkpoint_tools; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ)).returncode == 0
    assert load_checkpoint(folder / "best_model.pt")["epoch"] == 1
