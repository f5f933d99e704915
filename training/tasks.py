"""The built-in task of sft and dpo: put letters in order, "sort dbca: " → "abcd". Answers that a program can check.

Used by sft.py and dpo.py. Nothing is downloaded, and nothing is drawn from a global generator.

Fine-tuning shows two kinds of right answers, ascending and descending, one as often as the other. The preference is
for the ascending one. So fine-tuning teaches what an answer is, and the preferences which one people like. Half of
the rejected answers are descending, half ascending with a mistake: else only the order would count, and the letters
would be forgotten.
"""

from __future__ import annotations

import random
import string

from training.answers import Example

NUM_PROMPTS = 12_000
SIZES = (3, 4, 5)  # letters in a prompt
SEED = 0  # of the task: the data of a run does not depend on the run's seed


def answer_examples() -> list[Example]:
    """Each prompt twice, with its ascending and with its descending answer."""
    return [
        Example(_prompt(letters), (answer.encode(),))
        for letters in _draw_letters()
        for answer in (_ascending(letters), _ascending(letters)[::-1])
    ]


def preference_examples() -> list[Example]:
    """The prompts of `answer_examples`, once each: (ascending, descending or with a mistake)."""
    draw = random.Random(SEED + 1)
    examples = []
    for letters in _draw_letters():
        chosen = _ascending(letters)
        rejected = chosen[::-1] if draw.random() < 0.5 else _with_mistake(chosen, draw)
        examples.append(Example(_prompt(letters), (chosen.encode(), rejected.encode())))
    return examples


def _draw_letters() -> list[str]:
    """Different letters in a random order. A set comes once: what is held out is held out in any order."""
    draw = random.Random(SEED)
    found: dict[frozenset[str], str] = {}
    while len(found) < NUM_PROMPTS:
        letters = "".join(draw.sample(string.ascii_lowercase, draw.choice(SIZES)))
        found.setdefault(frozenset(letters), letters)
    return list(found.values())


def _prompt(letters: str) -> bytes:
    return f"sort {letters}: ".encode()


def _ascending(letters: str) -> str:
    return "".join(sorted(letters))


def _with_mistake(text: str, draw: random.Random) -> str:
    """A wrong answer that looks right: two neighbours exchanged, or one letter replaced by another."""
    at = draw.randrange(len(text) - 1)
    if draw.random() < 0.5:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + draw.choice([c for c in string.ascii_lowercase if c not in text]) + text[at + 1 :]
