"""Tests of `python -m training sft`, training/sft.py, and of what sft and dpo begin with. Its data: answers_test.py."""

import json
import os

import pytest
import torch

from testcases.training.killed_run import difference
from testcases.training.stages import EXACT, assert_same_run, interrupt, refused
from testcases.training.work import TINY, rows
from training.__main__ import main
from training.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def data_file(tmp_path):
    """40 prompts, of which each is answered by its own letter, twice."""
    path = tmp_path / "answers.jsonl"
    letters = "abcdefghij"
    lines = [
        {"prompt": f"{way} {letter}:", "answer": 2 * letter}
        for way in ("say", "do", "give", "be")
        for letter in letters
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_command_learns_to_answer_and_says_how_well(tmp_path, capsys, data_file):
    flags = ["--max_steps=250", "--lr=2e-2", "--n_embd=32", "--data", str(data_file)]
    assert main(["sft", *TINY, *flags, "--output_dir", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "data    38 rows to train on, 2 to validate on, of up to 9 bytes" in out
    assert "start   random weights" in out
    assert (
        f"result  {rows(tmp_path / 'run')[-1]['val_loss']:.3f} nats a byte: validation loss after 250" in out
    )
    assert "exact   0.0% → 100.0% of the held-out prompts answered exactly" in out
    [sample] = [line for line in out.splitlines() if line.startswith("sample  ")]
    prompt, answered = sample.removeprefix("sample  ").split(" → ")
    assert answered == repr(2 * prompt[-3])
    assert rows(tmp_path / "run")[0]["tokens"] == 38 * 3, (
        "in an epoch: only the answers and their ends are learned"
    )


def test_without_a_file_it_learns_the_built_in_task(tmp_path, capsys):
    flags = ["--block_size=17", "--max_steps=2", "--output_dir", str(tmp_path / "run")]
    assert main(["sft", *TINY, *flags]) == 0
    out = capsys.readouterr().out
    assert "data    22,800 rows to train on, 1,200 to validate on, of up to 17 bytes" in out
    assert "sample  'sort " in out


def test_rows_that_do_not_fit_are_said_to_be_left_out(tmp_path, capsys, data_file):
    flags = ["--max_steps=1", "--data", str(data_file), "--output_dir", str(tmp_path / "run")]
    assert main(["sft", *TINY, "--block_size=8", *flags]) == 0
    assert "LEFT OUT: 10 of 40 rows are longer than block_size 8; --block_size 9" in capsys.readouterr().out


@pytest.mark.limit(60)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_interrupted_run_goes_on_bit_for_bit_without_the_file_it_started_from(
    tmp_path, data_file, start_file, capsys
):
    command = ["sft", *TINY, *EXACT, "--data", str(data_file), "--init_from", str(start_file)]
    assert main([*command, "--output_dir", str(tmp_path / "whole")]) == 0
    stopped = interrupt(command, tmp_path)
    assert {name: code for name, (code, _) in stopped.items()} == {"SIGTERM": 143, "SIGKILL": -9}, stopped
    assert "micro-batches into the next. Everything is in " in stopped["SIGTERM"][1]
    start_file.unlink()
    capsys.readouterr()
    for name in stopped:
        assert main([*command, "--output_dir", str(tmp_path / name), "--resume", "auto"]) == 0
        out = capsys.readouterr().out
        assert "resume  " in out
        assert "exact   0.0% → " in out, "what was measured before the first update is in the checkpoint"
        assert_same_run(tmp_path / name, tmp_path / "whole")


# ---- what it starts from


def test_run_starts_from_the_weights_of_init_from_and_from_nothing_else_of_it(
    tmp_path, capsys, data_file, small_file
):
    pretrained = tmp_path / "pretrained"
    tiny = [*TINY, "--max_steps=3"]
    assert main(["pretrain", *tiny, "--data", str(small_file), "--output_dir", str(pretrained)]) == 0
    source = pretrained / "epoch_0_step_3.pt"
    flags = [
        "--lr=0",
        "--data",
        str(data_file),
        "--init_from",
        str(source),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    assert main(["sft", *tiny, *flags]) == 0
    assert f"start   {source}" in capsys.readouterr().out
    got, want = load_checkpoint(tmp_path / "run" / "epoch_0_step_3.pt"), load_checkpoint(source)
    assert difference(got["model_state_dict"], want["model_state_dict"]) is None
    assert got["progress"]["total_tokens"] != want["progress"]["total_tokens"]


def without_a_layer(state: dict) -> None:
    del state["model_state_dict"]["final_norm.weight"]


def with_nan(state: dict) -> None:
    state["model_state_dict"]["final_norm.weight"][3] = torch.nan


def wider(state: dict) -> None:
    state["config"] = {"n_embd": 32, "n_layer": 1, "block_size": 8}
    state["model_state_dict"]["final_norm.weight"] = torch.ones(32)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            without_a_layer,
            "the weights of {} do not fit this model: the checkpoint does not fit: final_norm.weight is ",
        ),
        (wider, "the weights of {} do not fit this model: it has n_embd 32"),
        (with_nan, "{} holds weights that are inf or NaN"),
    ],
)
def test_weights_that_cannot_be_used_are_one_sentence(
    tmp_path, capsys, data_file, start_file, change, sentence
):
    state = load_checkpoint(start_file)
    change(state)
    save_checkpoint(state, start_file)
    command = ["sft", "--data", str(data_file), "--init_from", str(start_file)]
    assert refused(capsys, tmp_path, command).startswith(sentence.format(start_file))


def test_files_that_cannot_be_used_are_one_sentence(tmp_path, capsys, data_file, start_file):
    sft = ["sft", "--data", str(data_file)]
    assert refused(capsys, tmp_path, [*sft, "--init_from", "no.pt"]) == "no.pt does not exist"
    start_file.write_bytes(b"garbage")
    assert refused(capsys, tmp_path, [*sft, "--init_from", str(start_file)]).startswith(
        f"{start_file} is damaged: "
    )
    assert refused(capsys, tmp_path, ["sft", "--data", "no.jsonl"]).startswith("No such file: no.jsonl; ")
    data_file.write_text('{"prompt": "a", "chosen": "b"}')
    assert refused(capsys, tmp_path, sft) == f"{data_file}, line 1: the key 'answer' is missing."
