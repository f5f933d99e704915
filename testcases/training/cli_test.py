"""Tests of the command line: training/__main__.py, run.py, execute.py and pretrain.py. See also cli_resume_test.py.

Most call main() here, which is the same code without the second that a process needs to import torch; one
starts a process for real.
"""

import errno
import math
import os
import subprocess
import sys

import pytest
import torch

from testcases.training.work import ROOT, TINY, rows, start
from training.__main__ import TRAINING, main
from training.config import DESCRIPTIONS, parse
from training.data import bigram_loss, load_text, train_val_split
from training.pretrain import prepare
from training.trainer import Trainer


@pytest.mark.limit(60)
def test_process_trains_on_a_file_and_writes_metrics_and_a_picture(small_file, tmp_path):
    output_dir = tmp_path / "new" / "run"
    process = start(
        "--data",
        str(small_file),
        "--output_dir",
        str(output_dir),
        "--max_steps",
        "50",
        "--log_interval",
        "10",
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    train_rows = [row for row in rows(output_dir) if "train_loss" in row]
    assert [row["global_step"] for row in train_rows] == [10, 20, 30, 40, 44, 50], "44 updates are an epoch"
    assert train_rows[-1]["train_loss"] < train_rows[0]["train_loss"]
    assert rows(output_dir)[-1]["val_loss"] == pytest.approx(
        float(out.split("result")[1].split()[0]), abs=1e-3
    )
    train, val = train_val_split(load_text(small_file), block_size=16)
    assert f"{bigram_loss(train, val):.3f} nats a byte: the bigram model" in out
    assert "sample  'The " in out
    assert (output_dir / "loss.png").read_bytes().startswith(b"\x89PNG")
    names = sorted(path.name for path in output_dir.iterdir() if path.suffix != ".sha256")
    assert names == ["best_model.pt", "config.yaml", "epoch_1_step_50.pt", "loss.png", "metrics.jsonl"]


def test_without_a_path_it_trains_on_the_embedded_corpus(tmp_path, capsys):
    assert (
        main(
            ["pretrain", *TINY, "--output_dir", str(tmp_path), "--max_steps", "2", "--val_fraction", "0.002"]
        )
        == 0
    )
    assert "2 updates" in capsys.readouterr().out
    loss = rows(tmp_path)[-1]["val_loss"]
    assert 4.0 < loss < math.log(256) + 0.2


def test_same_seed_gives_the_same_numbers_and_another_one_others(small_file, tmp_path):
    def losses(name: str, seed: int) -> list[float]:
        flags = ["--dropout", "0.1", "--log_interval", "1", "--max_steps", "4", "--seed", str(seed)]
        torch.rand(3)  # what happened before does not matter
        assert (
            main(["pretrain", *TINY, *flags, "--data", str(small_file), "--output_dir", str(tmp_path / name)])
            == 0
        )
        return [row.get("train_loss", row.get("val_loss")) for row in rows(tmp_path / name)]

    first = losses("a", 1)
    assert losses("b", 1) == first
    assert losses("c", 2) != first


def test_seed_reaches_the_shuffling(small_file, tmp_path):
    def first_batch(seed: int) -> list[int]:
        flags = ["--data", str(small_file), "--output_dir", str(tmp_path / "run"), "--seed", str(seed)]
        run = prepare(parse("pretrain", [*TINY, *flags]))
        run.logger.close()
        return next(iter(run.trainer.train_loader))["input_ids"].flatten().tolist()

    assert first_batch(1) == first_batch(1) != first_batch(2)


def test_flags_reach_the_trainer(small_file, tmp_path):
    flags = (
        "--lr 0.5 --warmup_steps 2 --max_steps 5 --grad_accum_steps 2 --max_grad_norm 0.001 --eval_interval 2"
    )
    more = f"--log_interval 1 --optimizer SGD --scheduler linear --min_lr_ratio 0.5 --data {small_file}"
    assert (
        main(["pretrain", *TINY, *flags.split(), *more.split(), "--output_dir", str(tmp_path / "run")]) == 0
    )
    train_rows = [row for row in rows(tmp_path / "run") if "train_loss" in row]
    rates = [0.25, 0.5, 0.5, 0.5 * (1 - 0.5 / 3), 0.5 * (1 - 1 / 3)]
    assert [row["lr"] for row in train_rows] == pytest.approx(rates)
    assert train_rows[0]["tokens"] == 2 * 4 * 16
    assert [row["global_step"] for row in rows(tmp_path / "run") if "val_loss" in row] == [2, 4, 5]
    drop = train_rows[0]["train_loss"] - train_rows[-1]["train_loss"]
    assert abs(drop) < 0.1, "with a gradient of norm 0.001 hardly anything moves"


def test_threads_reach_torch(small_file, tmp_path):
    before = torch.get_num_threads()
    flags = ["--data", str(small_file), "--max_steps", "1"]
    try:
        for threads in (2, 1):
            where = ["--output_dir", str(tmp_path / str(threads)), "--threads", str(threads)]
            assert main(["pretrain", *TINY, *flags, *where]) == 0
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_second_run_in_the_folder_of_a_first_one_is_refused_and_touches_nothing(small_file, tmp_path, capsys):
    command = ["pretrain", *TINY, "--data", str(small_file), "--output_dir", str(tmp_path / "run")]
    assert main([*command, "--max_steps", "3"]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    capsys.readouterr()
    assert main([*command, "--max_steps", "2"]) == 2
    assert "holds the checkpoints of an earlier run: go on with --resume auto" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_row_is_on_disk_as_soon_as_it_is_there(small_file, tmp_path, monkeypatch):
    lines = []

    def validate(self: Trainer) -> dict[str, float]:
        lines.append(len(rows(tmp_path)))
        return {"loss": 1.0, "perplexity": math.e}

    monkeypatch.setattr(Trainer, "validate", validate)
    flags = ["--max_steps", "4", "--log_interval", "1", "--eval_interval", "2"]
    assert main(["pretrain", *TINY, "--data", str(small_file), "--output_dir", str(tmp_path), *flags]) == 0
    assert lines == [2, 5]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--data", "no/such/file"], "No such file or folder: no/such/file; "),
        (["--data", "{empty}"], "Empty text: "),
        (["--data", "{binary}"], "Not a text file: "),
        (["--block_size", "400"], "Text too short: 3080 bytes leave 308 for validation, "),
        (["--lr", "-1"], "lr must be finite and >= 0, got -1.0"),
        (["--lr", "fast"], "lr must be a number, got 'fast' (from --lr)"),
        (["--max_steps", "0"], "max_steps must be >= 1, got 0 (from --max_steps)"),
        (["--grad_accum_steps", "0"], "grad_accum_steps must be >= 1, got 0"),
        (["--batch_size", "0"], "batch_size must be >= 1, got 0"),
        (["--threads", "0"], "threads must be >= 1, got 0"),
        (["--n_head", "3"], "n_embd must be divisible by n_head, got 16 and 3"),
        (["--optimizer", "adanw"], "unknown optimizer 'adanw': did you mean 'adamw'?"),
        (["--scheduler", "cosin"], "unknown scheduler 'cosin': did you mean 'cosine'?"),
        (["--device", "tpu9"], "device 'tpu9' cannot be used here; try --device cpu"),
        (["--device", "meta"], "device 'meta' cannot be used here; try --device cpu"),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used here; try --device cpu"),
        (["--max_step", "3"], "unknown flag --max_step: did you mean --max_steps?"),
        (["--reset_optimizer"], "--reset_optimizer needs --resume auto or --resume PATH"),
        (["--resume", "no/such.pt"], "no/such.pt does not exist"),
        (["--resume", "{binary}"], "{binary} cannot be loaded safely"),
        (["--output_dir", "{empty}"], "Cannot write to "),
        (["--output_dir", "{empty}/below"], "Cannot write to "),
    ],
)
def test_bad_input_is_one_sentence_on_stderr_and_exit_code_2_and_nothing_is_written(
    small_file, tmp_path, capsys, flags, sentence
):
    files = {"empty": tmp_path / "empty.txt", "binary": tmp_path / "binary.txt"}
    files["empty"].touch()
    files["binary"].write_bytes(b"\0\1\2")
    before = sorted(tmp_path.rglob("*"))
    flags = [flag.format(**files) for flag in flags]
    try:
        code = main(
            ["pretrain", *TINY, "--data", str(small_file), "--output_dir", str(tmp_path / "run"), *flags]
        )
    except SystemExit as exit_:  # argparse's way
        code = exit_.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith(sentence.format(**files))
    assert captured.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_run_that_breaks_down_is_reported_as_nan_and_as_skipped(small_file, tmp_path, capsys, monkeypatch):
    from training.model import GPT

    monkeypatch.setattr(GPT, "_init_weights", lambda self: self.embedding.weight.data.fill_(math.nan))
    flags = ["--data", str(small_file), "--output_dir", str(tmp_path / "run"), "--max_steps", "2"]
    assert main(["pretrain", *TINY, *flags, "--max_skips", "5"]) == 1
    captured = capsys.readouterr()
    assert "5 updates in a row" in captured.err
    assert math.isnan(rows(tmp_path / "run")[0]["train_loss"])


def test_run_whose_end_could_not_be_saved_says_so_and_fails(small_file, tmp_path, capsys, monkeypatch):
    arguments = ["pretrain", *TINY, "--data", str(small_file), "--output_dir", str(tmp_path), "--max_steps"]
    assert main([*arguments, "2"]) == 0
    before = sorted(tmp_path.glob("*.pt"))

    def full(state, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("training.checkpoint.write_snapshot", full)
    capsys.readouterr()
    assert main([*arguments, "4", "--resume", "auto"]) == 1
    err = capsys.readouterr().err
    assert "THE END COULD NOT BE SAVED: --resume auto goes on from" in err
    assert "epoch_0_step_2.pt" in err.splitlines()[-1]
    assert sorted(tmp_path.glob("*.pt")) == before
    monkeypatch.undo()
    assert main([*arguments, "4", "--resume", "auto"]) == 0
    assert main([*arguments, "4", "--resume", "auto"]) == 0, "nothing is left to do, and nothing to save"


def test_help_does_not_wait_for_torch():
    code = "import sys; from training.__main__ import build_parser; build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("command", list(TRAINING))
def test_every_command_that_trains_has_its_own_help_and_a_line_in_the_help_of_all(capsys, command):
    for argv, words in (([command, "--help"], DESCRIPTIONS[command]), (["--help"], TRAINING[command])):
        with pytest.raises(SystemExit, match="0"):
            main(argv)
        assert words in " ".join(capsys.readouterr().out.split())


def test_command_that_does_not_exist_is_one_sentence(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["pretrian"])
    assert "pretrain" in capsys.readouterr().err
