"""Lesson 10: what the three stages of a language model learn from.  Tasks 10.1, 10.2, 10.3, 10.4.

Holds:    build_sft_example, collate (data), sequence_logprobs, dpo_loss (losses); given: sum_preferences, Totals,
          to_device
Test it:  pytest testcases/basic_test.py -k "example or collate or logprobs or dpo_loss"

Symbols:  B batch size · T tokens in a row · V vocabulary size
          x prompt · y answer · z logits (B, T, V) · π policy · π_ref reference · β beta · σ the logistic function

Papers: Ouyang et al. 2022, "Training language models to follow instructions with human feedback",
https://arxiv.org/abs/2203.02155 (pretraining → supervised fine-tuning → preferences);
Rafailov et al. 2023, "Direct Preference Optimization", https://arxiv.org/abs/2305.18290.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses import IGNORE_INDEX  # −100: a label with this value is no target

Example = dict[str, Tensor]


def build_sft_example(
    prompt_ids: Sequence[int], answer_ids: Sequence[int], eos_id: int, max_length: int
) -> Example:
    """A prompt and its answer as a row to learn from: the prompt is read, the answer is learned.

    The text is prompt, answer, EOS. As in lesson 05, labels[t] is the token that follows input_ids[t]: the
    shift is made here, once, and no loss shifts again. A label is a target if that token belongs to the answer
    or is the EOS behind it; otherwise it is −100.

        text       S  O  R  T  b  a  →  a  b  EOS
        input_ids  S  O  R  T  b  a  →  a  b
        labels     ·  ·  ·  ·  ·  ·  a  b  EOS        (· is −100)

    A text of more than max_length + 1 tokens loses its end, the EOS first: an answer that was cut has not
    ended, and the model must not learn that it has. A prompt that leaves no room for the answer gives a row
    whose every label is −100.

    Args:
        prompt_ids: at least one token.
        answer_ids: the answer without the EOS; may be empty.
        eos_id: the token that ends an answer.
        max_length: the largest T, ≥ 1.

    Returns:
        {"input_ids": (T,), "labels": (T,)}, int64, T = min(len(prompt) + len(answer), max_length).

    Raises:
        ValueError: for an empty prompt (then nothing predicts the first token), or max_length < 1.
    """
    if len(prompt_ids) == 0:
        raise ValueError("prompt_ids must hold at least one token, got none")
    if max_length < 1:
        raise ValueError(f"max_length must be >= 1, got {max_length}")
    # TODO 10.1 build an example: the prompt is masked, the labels are shifted, EOS is learned
    # BEGIN SOLUTION
    text = torch.tensor([*prompt_ids, *answer_ids, eos_id])[: max_length + 1]
    input_ids, labels = text[:-1], text[1:].clone()
    # the last token of the prompt predicts the first of the answer: its label stays
    labels[: len(prompt_ids) - 1] = IGNORE_INDEX
    return {"input_ids": input_ids, "labels": labels}
    # END SOLUTION


def collate(examples: Sequence[Example], pad_id: int) -> Example:
    """Rows of different lengths as one batch, filled up on the right.

    Which positions are filling is known from the lengths, not from the token: many models have no pad token
    and take the EOS for it. The EOS of an answer stays a target.

    Args:
        examples: B ≥ 1 dicts {"input_ids": (T_b,), "labels": (T_b,)}. They are left as they are.
        pad_id: what fills up the input_ids; may be any token, the EOS included. A causal model never sees it,
            because it stands behind everything that counts.

    Returns:
        {"input_ids": (B, T), "labels": (B, T)}, int64, T the largest T_b. Filled labels are −100.

    Raises:
        ValueError: without examples.
    """
    if len(examples) == 0:
        raise ValueError("examples must hold at least one example, got none")
    # TODO 10.2 fill up the rows of a batch
    # BEGIN SOLUTION
    shape = len(examples), max(len(example["input_ids"]) for example in examples)
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.int64)
    for row, example in enumerate(examples):
        length = len(example["input_ids"])
        input_ids[row, :length] = example["input_ids"]
        labels[row, :length] = example["labels"]
    return {"input_ids": input_ids, "labels": labels}
    # END SOLUTION


def sequence_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """How likely each row's answer is under the model: log π(y | x), one number a row.

    Mathematics, over the positions t of row b with labels[b, t] ≠ −100:
        log π(y | x)[b] = Σ_t log softmax(z[b, t])[labels[b, t]]

    The probability of a text is a product over its tokens, so its logarithm is a sum; no average is taken.

    Args:
        logits: z, (B, T, V), any floating dtype; the sum is computed in float32.
        labels: (B, T), int64, already shifted; −100 is no target.

    Returns:
        (B,), float32, ≤ 0, in nats. A row without a target has 0.
    """
    # TODO 10.3 the log-probability of an answer
    # −100 is no index; and what is added there is exactly 0, also where a logit is −inf
    # BEGIN SOLUTION
    log_probs = F.log_softmax(logits.float(), dim=-1)  # (B, T, V)
    picked = log_probs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)  # (B, T)
    return picked.masked_fill(labels == IGNORE_INDEX, 0.0).sum(dim=-1)
    # END SOLUTION


def dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The DPO loss of each pair, and the rewards that the policy gives implicitly.

    Mathematics, with y_w the chosen and y_l the rejected answer to the same prompt x:
        r(y) = β · (log π(y | x) − log π_ref(y | x))
        loss = − log σ(r(y_w) − r(y_l))

    At the start the policy is the reference: both rewards are 0, and the loss is ln 2 ≈ 0.6931. It is finite
    and has a gradient for every finite margin r(y_w) − r(y_l), also for one of −10 000.

    Args:
        policy_chosen, policy_rejected: log π of the answers, (B,), with a graph.
        ref_chosen, ref_rejected: log π_ref of the same answers, (B,).
        beta: β > 0, in rewards a nat. A small one lets the policy move far from the reference.

    Returns:
        (losses, chosen_rewards, rejected_rewards), (B,) each. The losses carry the graph, one for each pair:
        they may be added over micro-batches, a mean could not. The rewards are numbers to look at, without
        a graph.
    """
    if not beta > 0:
        raise ValueError(f"beta must be > 0, got {beta}")
    # TODO 10.4 the loss and the rewards of preference pairs
    # BEGIN SOLUTION
    chosen_rewards = beta * (policy_chosen - ref_chosen)
    rejected_rewards = beta * (policy_rejected - ref_rejected)
    # logsigmoid, not log of sigmoid: σ(−200) is 0 in float32, and its logarithm −inf
    losses = -F.logsigmoid(chosen_rewards - rejected_rewards)
    return losses, chosen_rewards.detach(), rejected_rewards.detach()
    # END SOLUTION


def sum_preferences(losses: Tensor, chosen_rewards: Tensor, rejected_rewards: Tensor) -> dict[str, Tensor]:
    """What DPO logs, as sums over pairs. The margin is the chosen reward minus the rejected one.

    A pair with a margin > 0 counts 1 for the accuracy, one with a margin of exactly 0 counts ½: a policy that
    equals its reference is at chance level.
    """
    margins = chosen_rewards - rejected_rewards
    return {
        "loss": losses.sum(),
        "accuracy": (0.5 * (1 + margins.sign())).sum(),
        "margin": margins.sum(),
        "chosen_reward": chosen_rewards.sum(),
        "rejected_reward": rejected_rewards.sum(),
    }


class Totals:
    """Named sums and their common count: Σ loss, Σ accuracy, …, N. Means are taken once, at the end."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, sums: dict[str, Tensor], count: int) -> None:
        """Add one micro-batch. Keeps no graph, and reads nothing from the device."""
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
        self.count += count

    def means(self) -> dict[str, float]:
        """Each sum over the count, and "count" itself: plain numbers, by one read. NaN where the count is 0."""
        values = (torch.stack(list(self.sums.values())).float() / self.count).tolist() if self.sums else []
        return dict(zip(self.sums, values, strict=True)) | {"count": self.count}


def to_device(batch: dict, device: torch.device) -> dict:
    """A batch with all its tensors on the device, at any depth."""
    return {
        key: to_device(value, device) if isinstance(value, dict) else value.to(device, non_blocking=True)
        for key, value in batch.items()
    }
