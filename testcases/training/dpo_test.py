"""Tests of DPO: training/preference.py, training/dpo.py and the command `python -m training dpo`."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from testcases.training.stages import EXACT, assert_same_run, interrupt, refused
from testcases.training.work import TINY, rows, weights
from training.__main__ import main
from training.amp import Precision
from training.answers import AnswerDataset
from training.checkpoint import load_checkpoint, save_checkpoint
from training.dpo import digest, frozen_copy
from training.preference import Preference, dpo_loss, sequence_logprobs
from training.tasks import preference_examples

LN_2 = float(torch.tensor(math.log(2)))  # in float32, as the losses are
CPU = torch.device("cpu")


@pytest.fixture
def pairs() -> dict[str, torch.Tensor]:
    """A batch of 8 pairs, (8, 2, 17)."""
    return next(iter(torch.utils.data.DataLoader(AnswerDataset(preference_examples()[:8], 17), 8)))


@pytest.fixture
def data_file(tmp_path):
    """38 prompts, of which each should be answered by yes, and not by nay."""
    path = tmp_path / "pairs.jsonl"
    lines = [
        {"prompt": f"{way} {letter}:", "chosen": "yes", "rejected": "nay"}
        for way in ("say", "do")
        for letter in "abcdefghijklmnopqrs"
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def change_weights(path: Path) -> None:
    """Make another model of the one in a checkpoint."""
    state = load_checkpoint(path)
    state["model_state_dict"]["final_norm.weight"] += 1
    save_checkpoint(state, path)


# ---- the objective


def test_logprobs_are_sums_over_the_targets_in_float32():
    generator = torch.Generator().manual_seed(1)
    logits = 5 * torch.randn(3, 4, 7, generator=generator)
    labels = torch.tensor([[1, 2, 3, 4], [-100, 0, 6, -100], [-100, -100, -100, -100]])
    want = torch.zeros(3, dtype=torch.float64)
    for b, t in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]:
        want[b] += torch.log_softmax(logits[b, t].double(), dim=0)[labels[b, t]]
    got = sequence_logprobs(logits, labels)
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)  # float32 of numbers around 40
    assert got[2] == 0
    half = sequence_logprobs(logits.bfloat16(), labels)
    assert half.dtype == torch.float32
    assert torch.equal(half, sequence_logprobs(logits.bfloat16().float(), labels))


def test_loss_is_minus_log_sigmoid_of_the_difference_of_the_rewards():
    policy, reference = torch.tensor([[-3.0, -5.0], [-2.0, -9.0]]), torch.tensor([[-4.0, -4.5], [-1.0, -9.5]])
    losses, margins = dpo_loss(policy, reference, beta=0.5)
    want = [0.5 * (1.0 - -0.5), 0.5 * (-1.0 - 0.5)]
    assert margins.tolist() == pytest.approx(want)
    assert losses.tolist() == pytest.approx([-math.log(1 / (1 + math.exp(-margin))) for margin in want])


@pytest.mark.parametrize("margin", [-10_000.0, 10_000.0, 0.0])
def test_loss_and_gradient_are_finite_at_any_margin(margin):
    policy = torch.tensor([[margin, 0.0]], requires_grad=True)
    losses, margins = dpo_loss(policy, torch.zeros(1, 2), beta=1.0)
    losses.sum().backward()
    want = {-10_000.0: (10_000.0, -1.0), 10_000.0: (0.0, 0.0), 0.0: (LN_2, -0.5)}[margin]
    assert (losses.item(), policy.grad[0, 0].item()) == pytest.approx(want)
    assert policy.grad[0, 0] == -policy.grad[0, 1]
    assert not margins.requires_grad


@pytest.mark.parametrize("precision", [(False, "bf16"), (True, "bf16"), (True, "fp16")], ids=str)
def test_policy_that_is_its_reference_has_a_loss_of_exactly_ln_2(tiny_gpt, pairs, precision):
    model = tiny_gpt(vocab_size=256, block_size=17)
    precision = Precision(CPU, *precision)
    objective = Preference(frozen_copy(model, precision), beta=0.7)

    def forward(input_ids):
        with precision.autocast:
            return model(input_ids)

    sums = objective.sums(forward, pairs)
    assert {name: value.item() for name, value in sums.items()} == {
        "loss": 8 * LN_2,
        "accuracy": 4,
        "margin": 0,
    }
    assert all(value.dtype == torch.float32 for value in sums.values())


def test_reference_has_no_dropout_draws_nothing_and_does_not_move_with_the_policy(tiny_gpt, pairs):
    model = tiny_gpt(vocab_size=256, block_size=17, dropout=0.5).train()
    reference = frozen_copy(model, Precision(CPU, False, "bf16"))
    ids = pairs["input_ids"].flatten(0, 1)
    state, first = torch.get_rng_state(), reference(ids)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(1.0)
    assert torch.equal(reference(ids), first)
    assert not first.requires_grad
    assert model.training


def test_pair_that_was_filled_in_counts_nothing_and_adds_exactly_nothing(tiny_gpt, pairs):
    model, other = tiny_gpt(vocab_size=256, block_size=17), tiny_gpt(vocab_size=256, block_size=17)
    torch.nn.init.normal_(other.embedding.weight, std=0.5)
    objective = Preference(frozen_copy(other, Precision(CPU, False, "bf16")), beta=0.7)
    filled = {name: tensor.clone() for name, tensor in pairs.items()}
    filled["labels"][3:] = -100
    real = {name: tensor[:3] for name, tensor in pairs.items()}
    assert (objective.count(pairs), objective.count(filled), objective.count(real)) == (8, 3, 3)
    got, want = objective.sums(model, filled), objective.sums(model, real)
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=1e-5, rtol=0)  # another batch, other kernels
    empty = objective.sums(model, {**filled, "labels": torch.full_like(filled["labels"], -100)})
    assert [value.item() for value in empty.values()] == [0, 0, 0]
    empty["loss"].backward()
    assert not any(param.grad.any() for param in model.parameters())


def test_update_from_micro_batches_of_unequal_size_is_that_of_all_their_pairs(tiny_gpt, make_trainer, pairs):
    def trained(*sizes: int) -> torch.Tensor:
        torch.manual_seed(0)
        model, reference = (tiny_gpt(vocab_size=256, block_size=17) for _ in range(2))
        objective = Preference(frozen_copy(reference, Precision(CPU, False, "bf16")), beta=0.5)
        parts = [
            dict(zip(pairs, tensors, strict=True))
            for tensors in zip(*(t.split(sizes) for t in pairs.values()), strict=True)
        ]
        trainer = make_trainer(parts, model=model, grad_accum_steps=len(sizes), objective=objective)
        trainer.train()
        assert trainer.history[0]["tokens"] == 8, "pairs are counted, not tokens"
        return weights(model)

    torch.testing.assert_close(trained(5, 3), trained(8), atol=1e-6, rtol=0)  # float32: another order of sums


# ---- the command


def test_command_learns_preferences_and_says_how_well(tmp_path, capsys, data_file, start_file):
    output_dir = tmp_path / "run"
    flags = ["--max_steps=30", "--eval_interval=15", "--log_interval=1", "--lr=5e-3", "--dropout=0.1"]
    command = ["dpo", *TINY, *flags, "--data", str(data_file), "--init_from", str(start_file)]
    assert main([*command, "--output_dir", str(output_dir)]) == 0
    out = capsys.readouterr().out
    losses = [row["train_loss"] for row in rows(output_dir) if "train_loss" in row]
    assert losses[-1] < 0.3 < 0.6 < losses[0] < 0.8
    last = [row for row in rows(output_dir) if "val_loss" in row][-1]
    assert last["val_accuracy"] == 1
    assert last["val_margin"] > 1
    assert "data    36 rows to train on, 2 to validate on, of up to 9 bytes" in out
    assert f"start   {start_file}: also the reference" in out
    assert (
        f"result  {last['val_loss']:.3f} nats a pair: validation loss after 30 updates (0.693 before the first"
        in out
    )
    assert f"prefers {last['val_accuracy']:.1%} of the held-out chosen answers" in out
    assert "exact   0.0% → " in out
    assert "sample  '" in out
    initial = load_checkpoint(start_file)["model_state_dict"]
    assert digest(load_checkpoint(output_dir / "reference.pt")["model_state_dict"]) == digest(initial)
    assert digest(load_checkpoint(output_dir / "best_model.pt")["model_state_dict"]) != digest(initial)


@pytest.mark.parametrize("amp", [[], ["--use_amp", "--amp_dtype=bf16"]])
def test_first_update_of_a_run_has_a_loss_of_exactly_ln_2(tmp_path, data_file, start_file, amp):
    command = ["dpo", *TINY, *amp, "--max_steps=1", "--log_interval=1", "--data", str(data_file)]
    assert main([*command, "--init_from", str(start_file), "--output_dir", str(tmp_path / "run")]) == 0
    assert rows(tmp_path / "run")[0]["train_loss"] == LN_2
    assert rows(tmp_path / "run")[0]["tokens"] == 4


@pytest.mark.limit(60)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_interrupted_run_goes_on_against_its_own_reference_bit_for_bit(
    tmp_path, data_file, start_file, capsys
):
    """Also when the file of --init_from has become another model meanwhile."""
    precision = ["--use_amp", "--amp_dtype=fp16"]  # of the reference, too
    command = ["dpo", *TINY, *EXACT, *precision, "--data", str(data_file), "--init_from", str(start_file)]
    assert main([*command, "--output_dir", str(tmp_path / "whole")]) == 0
    stopped = interrupt(command, tmp_path)
    assert {name: code for name, (code, _) in stopped.items()} == {"SIGTERM": 143, "SIGKILL": -9}, stopped
    assert "micro-batches into the next. Everything is in " in stopped["SIGTERM"][1]
    change_weights(start_file)
    capsys.readouterr()
    for name in stopped:
        assert main([*command, "--output_dir", str(tmp_path / name), "--resume", "auto"]) == 0
        assert f"{tmp_path / name / 'reference.pt'}: also the reference\nresume  " in capsys.readouterr().out
        assert_same_run(tmp_path / name, tmp_path / "whole")


def test_reference_of_a_resumed_run_is_searched_for_and_known_by_its_digest(
    tmp_path, data_file, start_file, capsys
):
    run, other = tmp_path / "run", tmp_path / "other"
    command = ["dpo", *TINY, "--max_steps=2", "--data", str(data_file), "--init_from", str(start_file)]
    assert main([*command, "--output_dir", str(run)]) == 0
    resume = [*command, "--max_steps=3", "--resume", str(run / "epoch_0_step_2.pt")]
    assert main([*resume, "--output_dir", str(other)]) == 0
    assert f"start   {run / 'reference.pt'}: also" in capsys.readouterr().out, "beside the checkpoint"
    with (run / "reference.pt").open("r+b") as file:
        file.write(b"garbage")
    shutil.rmtree(other)
    assert main([*resume, "--max_steps=2", "--output_dir", str(other)]) == 0, (
        "nothing to do, and no row to show"
    )
    shutil.rmtree(other)
    assert main([*resume, "--output_dir", str(other)]) == 0
    assert f"start   {start_file}: also" in capsys.readouterr().out, "a damaged one is passed over"
    assert digest(load_checkpoint(other / "reference.pt")["model_state_dict"]) == digest(
        load_checkpoint(start_file)["model_state_dict"]
    ), "the new folder is complete"
    change_weights(start_file)
    shutil.rmtree(other)
    sentence = refused(capsys, tmp_path, resume)
    assert sentence.startswith(
        f"The reference that {run / 'epoch_0_step_2.pt'} was trained against is in none of "
    )


def test_command_without_weights_to_start_from_is_refused(tmp_path, capsys, data_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sentence = refused(capsys, tmp_path, ["dpo", "--data", str(data_file)])
    assert sentence == (
        "There is no runs/sft/best_model.pt to start from: python -m training sft makes runs/sft/best_model.pt, "
        "and --init_from takes any checkpoint of a model."
    )


def test_checkpoint_of_another_stage_is_not_resumed(tmp_path, capsys, data_file, start_file):
    command = ["dpo", "--data", str(data_file), "--resume", str(start_file)]
    assert refused(capsys, tmp_path, command) == (
        f"{start_file} is no checkpoint of dpo; to start from its weights, give it as --init_from"
    )


def test_keys_of_the_file_are_prompt_chosen_and_rejected(tmp_path, capsys, start_file):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}')
    sentence = refused(capsys, tmp_path, ["dpo", "--data", str(path), "--init_from", str(start_file)])
    assert sentence == f"{path}, line 1: the key 'chosen' is missing."
