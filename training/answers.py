"""Prompts and their answers as rows to learn from: JSON-lines files, the split by prompt, fixed-shape tensors.

Used by sft.py (a prompt and its answer) and dpo.py (a prompt, a chosen and a rejected answer).

A row is prompt, answer, EOS, filled up on the right. EOS is the byte 0: no text holds it, whereas a newline would
end every answer of two lines. The same byte fills up; where it is a target is known from the length of the answer.

        text       s  o  r  t     b  a  :  a  b  EOS
        input_ids  s  o  r  t     b  a  :  a  b  0   0
        labels     ·  ·  ·  ·  ·  ·  ·  a  b  EOS ·  ·        (· is -100)

Format: https://jsonlines.org: UTF-8, one JSON object a line.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from training.data import DataError, DataNotFoundError
from training.evaluation import eval_mode
from training.losses import IGNORE_INDEX
from training.model import GPT
from training.sampler import Batch
from training.schema import suggest

EOS = 0


@dataclass(frozen=True)
class Example:
    """A prompt with its answer, or with its answers in the order chosen, rejected; UTF-8 bytes, none is empty."""

    prompt: bytes
    answers: tuple[bytes, ...]

    def length(self) -> int:
        """T of the longest row: each byte of prompt and answer is an input; EOS is a label only."""
        return len(self.prompt) + max(map(len, self.answers))


# ---- files


def read_examples(path: str | os.PathLike[str], keys: tuple[str, ...]) -> list[Example]:
    """The examples of a JSON-lines file. Lines of white space are passed over, other keys are ignored.

    Args:
        path: the file.
        keys: the key of the prompt, then those of the answers: ("prompt", "answer").

    Raises:
        DataError: the file is missing, unreadable or empty, or a line is not an object with these keys and a text
            that is not empty under each; one sentence with file and line.
    """
    path = Path(path)
    if not path.exists():
        raise DataNotFoundError(
            f"No such file: {path}; give a JSON-lines file with the keys {', '.join(keys)}."
        )
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}; give a JSON-lines file.") from error
    examples = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                examples.append(_parse(line, keys))
            except ValueError as error:
                raise DataError(f"{path}, line {number}: {error}.") from error
    if not examples:
        raise DataError(f"Empty file: {path} has no line; give objects with the keys {', '.join(keys)}.")
    return examples


def _parse(line: bytes, keys: tuple[str, ...]) -> Example:
    """ValueError with a clause for a line that is no example."""
    try:
        content = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError("this is not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"this should be an object with the keys {', '.join(keys)}")
    prompt, *answers = [_text(content, key) for key in keys]
    if len(answers) == 2 and answers[0] == answers[1]:
        raise ValueError(f"{keys[1]} and {keys[2]} are the same text, which prefers nothing")
    return Example(prompt, tuple(answers))


def _text(content: dict[str, Any], key: str) -> bytes:
    if key not in content:
        found = [name for name in content if suggest(name, [key]).startswith(": did you mean")]
        raise ValueError(f"the key {key!r} is missing" + (f"; is {found[0]!r} meant?" if found else ""))
    value = content[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} must be text, got {json.dumps(value)[:40]}")
    if not value:
        raise ValueError(f"{key} is empty")
    if "\0" in value:
        raise ValueError(f"{key} holds the character 0, which ends an answer here")
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{key} holds half of a surrogate pair, which is no character") from error


# ---- which rows are learned, and which are held out


def split_by_prompt(examples: list[Example], val_fraction: float) -> tuple[list[Example], list[Example]]:
    """(train, val): a prompt is in one of them with all its answers, so that what is held out is new.

    Which prompts are held out follows from their SHA-256 alone: from no seed, and not from the order of the file.

    Args:
        val_fraction: share of the distinct prompts, in (0, 1); at least one prompt is held out, and one is not.

    Raises:
        DataError: fewer than two distinct prompts.
    """
    if not 0.0 < val_fraction < 1.0:
        raise ValueError(f"val_fraction must be in (0, 1), got {val_fraction}")
    prompts = sorted({example.prompt for example in examples}, key=lambda p: hashlib.sha256(p).digest())
    if len(prompts) < 2:
        raise DataError("Too few prompts: there is only one, and some are needed to validate on.")
    held_out = set(prompts[: min(max(1, round(len(prompts) * val_fraction)), len(prompts) - 1)])
    train = [example for example in examples if example.prompt not in held_out]
    return train, [example for example in examples if example.prompt in held_out]


def fitting(examples: list[Example], block_size: int) -> tuple[list[Example], str | None]:
    """The examples that fit into block_size bytes as a whole, and a sentence about the others.

    None is cut: without its end an answer is another answer, and without its beginning a prompt another prompt.

    Raises:
        DataError: none fits.
    """
    kept = [example for example in examples if example.length() <= block_size]
    if len(kept) == len(examples):
        return kept, None
    longest = max(example.length() for example in examples)
    what = f"{len(examples) - len(kept):,} of {len(examples):,} rows are longer than block_size {block_size}"
    advice = f"--block_size {longest} takes them all"
    if not kept:
        raise DataError(f"Too long: {what}; {advice}.")
    return kept, f"LEFT OUT: {what}; {advice}."


# ---- rows as tensors


class AnswerDataset(Dataset[Batch]):
    """Rows of examples: the prompt is read, the answer and its EOS are learned.

    ``[i] -> {"input_ids": (T,), "labels": (T,)}``, int64, for examples of one answer, (2, T) for those of two.
    labels[t] is the token after input_ids[t]: the shift happens here, once. It is -100 where that token belongs to
    the prompt or fills up.

    Args:
        examples: at least one, with equally many answers.
        length: T, at least that of the longest example.
    """

    def __init__(self, examples: list[Example], length: int) -> None:
        self.examples = examples
        num_answers = len(examples[0].answers)
        texts = [example.prompt + answer for example in examples for answer in example.answers]
        if max(map(len, texts)) > length:
            raise ValueError(f"length must be at least {max(map(len, texts))}, got {length}")
        ends = [
            (len(example.prompt), len(example.prompt + answer))
            for example in examples
            for answer in example.answers
        ]
        filled = bytearray(b"".join(text.ljust(length + 1, bytes([EOS])) for text in texts))
        # A byte a token, and the labels made on demand: int64 rows would take 16 times the memory.
        self.tokens = torch.frombuffer(filled, dtype=torch.uint8).view(-1, num_answers, length + 1)
        self.ends = torch.tensor(ends, dtype=torch.int32).view(
            -1, num_answers, 2
        )  # of the prompt, of the text

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Batch:
        tokens = self.tokens[index].long()  # (answers, T + 1)
        first, last = self.ends[index, :, :1], self.ends[index, :, 1:]
        position = torch.arange(1, tokens.shape[-1])  # in the text, of the token that a label is
        is_target = (position >= first) & (position <= last)  # the EOS stands right behind the answer
        labels = tokens[:, 1:].masked_fill(~is_target, IGNORE_INDEX)
        row = {"input_ids": tokens[:, :-1], "labels": labels}
        return {name: t[0] for name, t in row.items()} if len(tokens) == 1 else row


def make_datasets(
    examples: list[Example], val_fraction: float, block_size: int
) -> tuple[AnswerDataset, AnswerDataset, list[str]]:
    """Rows to train on, rows of held-out prompts to validate on, and what is to be said about them.

    All rows are as long as the longest of them, which is at most block_size.

    Raises:
        DataError: no example fits, or there are too few prompts.
    """
    kept, left_out = fitting(examples, block_size)
    length = max(example.length() for example in kept)
    train, val = (AnswerDataset(part, length) for part in split_by_prompt(kept, val_fraction))
    line = f"data    {len(train):,} rows to train on, {len(val):,} to validate on, of up to {length} bytes"
    return train, val, [line] if left_out is None else [line, left_out]


# ---- what a model answers


@torch.no_grad()
def exact_match(model: nn.Module, dataset: AnswerDataset, batch_size: int) -> float:
    """Share of the prompts to which the model's greedy answer is one that the dataset has (as its first answer)."""
    device = next(model.parameters()).device
    answered: dict[bytes, bool] = {}
    with eval_mode(model):
        for start in range(0, len(dataset), batch_size):
            rows = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
            input_ids, labels = (
                torch.stack([row[name].view(-1, row[name].shape[-1])[0] for row in rows]).to(device)
                for name in ("input_ids", "labels")
            )
            matches = answered_exactly(model(input_ids), labels).tolist()
            for example, match in zip(dataset.examples[start:], matches, strict=False):
                answered[example.prompt] = answered.get(example.prompt, False) or match
    return sum(answered.values()) / len(answered)


def answered_exactly(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether greedy decoding from the prompt gives exactly this answer, EOS included: (B,) bool.

    It does if and only if at each target, behind the true tokens before it, the label has the largest logit: so
    one forward replaces a forward for each byte.

    Args:
        logits: (B, T, V). labels: (B, T), shifted; -100 is no target.
    """
    return ((logits.argmax(dim=-1) == labels) | (labels == IGNORE_INDEX)).all(dim=-1)


def answer(model: GPT, prompt: bytes, max_bytes: int) -> str:
    """What the model writes greedily behind a prompt, up to its EOS; "…" at the end where it does not stop."""
    input_ids = torch.tensor([list(prompt)], device=next(model.parameters()).device)
    written = model.generate(input_ids, max_bytes + 1, temperature=0)[0, len(prompt) :]
    text, eos, _ = bytes(written.tolist()).partition(bytes([EOS]))
    return text.decode("utf-8", "replace") + ("" if eos else "…")
