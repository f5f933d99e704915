"""Lesson 10: a small task with answers that a program can check.  Given: there is nothing to write here.

Holds:    prompts, sft_loader, corrupt, preference_loader, answer, score
Used by:  run.py

The prompt is some letters, the answer the same letters in order: "dbca -> " is answered by "abcd" or by "dcba".
Fine-tuning shows both kinds of answer, one as often as the other. The preference is for the ascending one. So
fine-tuning teaches what an answer is, and the preferences teach which answer people like. Half of the rejected
answers are descending, half are ascending with a mistake in them: else the model learns that the order is all
that matters, and forgets the letters.

Nothing is downloaded. Letters that are held out appear in no prompt of the training, in no order.
"""

import random
import string
import zlib

import torch
from torch import nn

from .losses import build_sft_example, collate

EOS_ID = PAD_ID = 0  # no text holds the byte 0; one token for both, as in many real models
MAX_LENGTH = 24
MIN_LETTERS, MAX_LETTERS = 3, 5


def prompts(count: int, held_out: bool, seed: int) -> list[str]:
    """So many times 3 to 5 different letters. Whether a set of letters is held out depends on the set alone."""
    draw = random.Random(seed)
    found: list[str] = []
    while len(found) < count:
        letters = draw.sample(string.ascii_lowercase, draw.randint(MIN_LETTERS, MAX_LETTERS))
        is_held_out = zlib.crc32("".join(sorted(letters)).encode()) % 10 == 0
        if is_held_out == held_out:
            found.append("".join(letters))
    return found


def encode(text: str) -> list[int]:
    """A token is a byte."""
    return list(text.encode())


def example(letters: str, answer_text: str) -> dict[str, torch.Tensor]:
    """The row for one prompt and one answer to it."""
    return build_sft_example(encode(f"{letters} -> "), encode(answer_text), EOS_ID, MAX_LENGTH)


def sft_loader(letters: list[str], batch_size: int, seed: int) -> list[dict]:
    """Batches in which an answer is ascending or descending by the toss of a coin."""
    draw = random.Random(seed)
    rows = [example(item, "".join(sorted(item, reverse=draw.random() < 0.5))) for item in letters]
    return [collate(rows[i : i + batch_size], PAD_ID) for i in range(0, len(rows), batch_size)]


def corrupt(text: str, draw: random.Random) -> str:
    """A wrong answer that looks right: one letter replaced by another, or two neighbours exchanged."""
    at = draw.randrange(len(text) - 1)
    if draw.random() < 0.5:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + draw.choice([c for c in string.ascii_lowercase if c not in text]) + text[at + 1 :]


def preference_loader(letters: list[str], batch_size: int, seed: int) -> list[dict]:
    """Batches of pairs. Chosen is the ascending answer; rejected the descending one, or a corrupted one."""
    draw = random.Random(seed)
    chosen, rejected = [], []
    for item in letters:
        up = "".join(sorted(item))
        chosen.append(example(item, up))
        rejected.append(example(item, up[::-1] if draw.random() < 0.5 else corrupt(up, draw)))
    parts = [slice(i, i + batch_size) for i in range(0, len(letters), batch_size)]
    return [
        {"chosen": collate(chosen[part], PAD_ID), "rejected": collate(rejected[part], PAD_ID)}
        for part in parts
    ]


def answer(model: nn.Module, letters: list[str], temperature: float = 0.0) -> list[str]:
    """What the model writes behind each prompt, up to its EOS; "..." at the end where it does not stop."""
    answers = {}
    for length in {len(item) for item in letters}:  # prompts of one length need no filling
        same = [item for item in letters if len(item) == length]
        input_ids = torch.tensor([encode(f"{item} -> ") for item in same])
        written = model.generate(input_ids, length + 2, temperature)[:, input_ids.shape[1] :]
        for item, tokens in zip(same, written.tolist(), strict=True):
            text, eos, _ = bytes(tokens).partition(bytes([EOS_ID]))
            answers[item] = text.decode("ascii", errors="backslashreplace") + ("" if eos else "...")
    return [answers[item] for item in letters]


def score(letters: list[str], answers: list[str]) -> dict[str, float]:
    """Shares of the answers that are exactly right: in either order, and in ascending order."""
    up = sum(text == "".join(sorted(item)) for item, text in zip(letters, answers, strict=True))
    down = sum(text == "".join(sorted(item))[::-1] for item, text in zip(letters, answers, strict=True))
    return {"exact": (up + down) / len(letters), "ascending": up / len(letters)}
