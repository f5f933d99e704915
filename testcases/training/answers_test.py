"""Tests of the data of sft and dpo: training/answers.py (files, split, rows, exact match) and training/tasks.py."""

import random

import pytest
import torch

from training.answers import (
    EOS,
    AnswerDataset,
    Example,
    answer,
    exact_match,
    fitting,
    make_datasets,
    read_examples,
    split_by_prompt,
)
from training.data import DataError
from training.losses import count_tokens, token_loss
from training.tasks import answer_examples, preference_examples

KEYS = ("prompt", "answer")


def examples_of(*pairs: tuple[str, str]) -> list[Example]:
    return [Example(prompt.encode(), (text.encode(),)) for prompt, text in pairs]


# ---- rows


def test_row_learns_the_answer_and_its_eos_and_nothing_of_the_prompt_and_the_filling():
    [row] = AnswerDataset(examples_of(("ab:", "xy")), length=7)
    assert row["input_ids"].tolist() == [*b"ab:xy", EOS, EOS]
    assert row["labels"].tolist() == [-100, -100, *b"xy", EOS, -100, -100]
    assert row["input_ids"].dtype == row["labels"].dtype == torch.int64


def test_row_that_is_as_long_as_the_block_keeps_its_eos():
    [row] = AnswerDataset(examples_of(("ab:", "xy")), length=5)
    assert row["input_ids"].tolist() == [*b"ab:xy"]
    assert row["labels"].tolist() == [-100, -100, *b"xy", EOS]


def test_preference_row_has_both_answers_behind_the_same_prompt():
    [row] = AnswerDataset([Example(b"p", (b"yes", b"n"))], length=5)
    assert row["input_ids"].tolist() == [[*b"pyes", EOS], [*b"pn", EOS, EOS, EOS]]
    assert row["labels"].tolist() == [[*b"yes", EOS, -100], [*b"n", EOS, -100, -100, -100]]


def test_filling_changes_neither_the_loss_nor_the_number_of_targets(tiny_gpt):
    examples, model = examples_of(("ab:", "xy")), tiny_gpt(vocab_size=256)
    [short], [long] = AnswerDataset(examples, 5), AnswerDataset(examples, 16)
    losses = [token_loss(model(row["input_ids"][None]), row["labels"][None]) for row in (short, long)]
    assert count_tokens(short["labels"]) == count_tokens(long["labels"]) == 3
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=0)  # another sum order in the attention


# ---- the split


def test_split_keeps_the_answers_of_a_prompt_together_and_holds_out_the_share_of_prompts():
    examples = examples_of(*((f"{i}", text) for i in range(40) for text in "ab"))
    train, val = split_by_prompt(examples, 0.25)
    assert len(val) == 20
    assert len({example.prompt for example in val}) == 10
    assert not {example.prompt for example in train} & {example.prompt for example in val}
    assert sorted([*train, *val], key=examples.index) == examples


def test_split_depends_on_the_prompts_and_not_on_their_order_or_a_generator():
    examples = examples_of(*((f"{i}", "a") for i in range(40)))
    held_out = {example.prompt for example in split_by_prompt(examples, 0.25)[1]}
    random.seed(1)
    again = split_by_prompt(random.sample(examples, 40), 0.25)[1]
    assert {example.prompt for example in again} == held_out
    more = {example.prompt for example in split_by_prompt(examples, 0.5)[1]}
    assert held_out < more, "a larger share holds out the same ones, and others"


@pytest.mark.parametrize("val_fraction", [0.001, 0.999])
def test_split_leaves_a_prompt_on_both_sides(val_fraction):
    train, val = split_by_prompt(examples_of(("a", "x"), ("b", "x"), ("c", "x")), val_fraction)
    assert train
    assert val


# ---- what does not fit


def test_row_that_does_not_fit_is_left_out_and_counted_and_none_is_cut():
    examples = examples_of(("a", "123"), ("b", "1234"), ("c", "12"), ("ccc", "123"))
    kept, said = fitting(examples, 4)
    assert [example.prompt for example in kept] == [b"a", b"c"]
    assert said == "LEFT OUT: 2 of 4 rows are longer than block_size 4; --block_size 6 takes them all."
    assert fitting(examples, 6) == (examples, None)
    with pytest.raises(
        DataError, match=r"^Too long: 4 of 4 rows are longer than block_size 2; --block_size 6"
    ):
        fitting(examples, 2)


def test_longer_one_of_two_answers_decides_whether_a_pair_fits():
    assert fitting([Example(b"a", (b"1", b"123")), Example(b"b", (b"1", b"2"))], 3)[0][0].prompt == b"b"


def test_rows_are_as_long_as_the_longest_and_what_was_left_out_is_in_the_summary():
    examples = examples_of(("a", "1"), ("b", "12"), ("c", "1" * 20))
    train, val, summary = make_datasets(examples, 0.5, 16)
    assert {row["input_ids"].shape for data in (train, val) for row in data} == {(3,)}
    assert summary == [
        "data    1 rows to train on, 1 to validate on, of up to 3 bytes",
        "LEFT OUT: 1 of 3 rows are longer than block_size 16; --block_size 21 takes them all.",
    ]


# ---- files


def test_file_is_read_as_utf_8_bytes_whatever_else_its_lines_hold(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf"
        + '{"prompt": "é\u2028", "answer": "\\n", "id": 7}\r\n\n  \n{"answer": "b", "prompt": "a"}'.encode()
    )
    assert read_examples(path, KEYS) == examples_of(("é\u2028", "\n"), ("a", "b"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("\n \n", "Empty file: {} has no line; give objects with the keys prompt, answer."),
        ('{"prompt": "a"', "{}, line 1: this is not JSON: "),
        ("[" * 20_000, "{}, line 1: this is not JSON: "),
        (
            '{"prompt": "a", "answer": "b"}\n\n["a"]',
            "{}, line 3: this should be an object with the keys prompt, ",
        ),
        ('{"promt": "a", "answer": "b"}', "{}, line 1: the key 'prompt' is missing; is 'promt' meant?."),
        ('{"prompt": "a", "text": "b"}', "{}, line 1: the key 'answer' is missing."),
        ('{"prompt": 3, "answer": "b"}', "{}, line 1: prompt must be text, got 3."),
        ('{"prompt": "a", "answer": null}', "{}, line 1: answer must be text, got null."),
        ('{"prompt": "", "answer": "b"}', "{}, line 1: prompt is empty."),
        ('{"prompt": "a", "answer": ""}', "{}, line 1: answer is empty."),
        (
            '{"prompt": "a", "answer": "\\u0000"}',
            "{}, line 1: answer holds the character 0, which ends an answer",
        ),
        ('{"prompt": "a", "answer": "\\ud800"}', "{}, line 1: answer holds half of a surrogate pair, "),
        (b'{"prompt": "\xff", "answer": "b"}', "{}, line 1: this is not UTF-8 text."),
    ],
)
def test_bad_file_is_one_sentence_with_its_line(tmp_path, text, sentence):
    path = tmp_path / "x.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as refused:
        read_examples(path, KEYS)
    assert str(refused.value).startswith(sentence.format(path))
    assert "\n" not in str(refused.value)


def test_missing_file_and_folder_and_equal_answers_are_one_sentence(tmp_path):
    with pytest.raises(
        DataError, match=r"^No such file: no\.jsonl; give a JSON-lines file with the keys prompt, "
    ):
        read_examples("no.jsonl", KEYS)
    with pytest.raises(DataError, match=r"^Cannot read .*: Is a directory; give a JSON-lines file\.$"):
        read_examples(tmp_path, KEYS)
    (tmp_path / "x").write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}')
    with pytest.raises(
        DataError, match="line 1: chosen and rejected are the same text, which prefers nothing"
    ):
        read_examples(tmp_path / "x", ("prompt", "chosen", "rejected"))


def test_single_prompt_is_refused():
    with pytest.raises(DataError, match=r"^Too few prompts"):
        split_by_prompt(examples_of(("a", "1"), ("a", "2")), 0.5)


# ---- exact match


def test_exact_match_is_that_of_greedy_decoding(tiny_gpt):
    """A model that has learned one of the two answers to half of its prompts, the first or the second."""
    examples = examples_of(
        *((f"{i}{i + 3}:", text) for i in range(1, 7) for text in (f"{7 * i}", f"{i % 3}"))
    )
    torch.manual_seed(0)
    model = tiny_gpt(vocab_size=256, dropout=0.1)
    dataset = AnswerDataset(examples, 16)
    learned = [dataset[i] for i in (0, 2, 5)]
    input_ids, labels = (torch.stack([row[name] for row in learned]) for name in ("input_ids", "labels"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(60):
        token_loss(model(input_ids), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    right: dict[bytes, bool] = {}
    for example in examples:
        same = answer(model, example.prompt, 2) == example.answers[0].decode()
        right[example.prompt] = right.get(example.prompt, False) or same
    assert 0 < sum(right.values()) < 6, "the test needs both"
    before = torch.get_rng_state()
    assert exact_match(model, dataset, batch_size=5) == sum(right.values()) / 6
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


def test_answer_ends_at_eos_and_says_where_there_is_none(tiny_gpt, monkeypatch):
    model = tiny_gpt(vocab_size=256)
    for text, shown in ((b"xy\0z", "xy"), (b"xyzz", "xyzz…")):
        written = torch.tensor([[*b"ab", *text]])
        monkeypatch.setattr(model, "generate", lambda ids, count, temperature, w=written: w)
        assert answer(model, b"ab", 3) == shown


# ---- the built-in task


def test_built_in_answers_are_right_and_come_in_both_orders():
    examples = answer_examples()
    for up, down in zip(examples[::2], examples[1::2], strict=True):
        letters = up.prompt.removeprefix(b"sort ").removesuffix(b": ")
        assert up.prompt == down.prompt
        assert up.answers == (bytes(sorted(letters)),)
        assert down.answers == (bytes(sorted(letters, reverse=True)),)
    sets = {frozenset(example.answers[0]) for example in examples}
    assert 2 * len(sets) == len(examples), "no set of letters twice, in whatever order"


def test_built_in_preferences_are_for_the_ascending_answer_over_a_descending_or_a_wrong_one():
    ups = answer_examples()[::2]
    pairs = preference_examples()
    assert [(pair.prompt, pair.answers[0]) for pair in pairs] == [(up.prompt, up.answers[0]) for up in ups]
    descending = [chosen[::-1] == rejected for chosen, rejected in (pair.answers for pair in pairs)]
    assert 0.45 < sum(descending) / len(pairs) < 0.55
    for chosen, rejected in (pair.answers for pair in pairs):
        assert rejected != chosen
        assert len(rejected) == len(chosen)


def test_built_in_task_is_the_same_every_time_and_draws_from_no_global_generator():
    random.seed(0)
    state = random.getstate()
    first = answer_examples(), preference_examples()
    assert random.getstate() == state
    random.seed(1)
    assert (answer_examples(), preference_examples()) == first
