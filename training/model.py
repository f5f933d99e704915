"""A small decoder-only GPT: pre-norm blocks, causal attention, rotary positions, tied embedding and head.

Run: ``python -m training pretrain`` trains it; ``GPT(GPTConfig())(input_ids)`` gives its logits.

Papers: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2: pre-norm, scaled
init); Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", https://arxiv.org/abs/1910.07467;
Su et al. 2021, "RoFormer" (rotary positions), https://arxiv.org/abs/2104.09864;
Press and Wolf 2017, "Using the Output Embedding to Improve Language Models", https://arxiv.org/abs/1608.05859.

Shapes: B sequences, T tokens, V = vocab_size, H = n_head, D = n_embd / n_head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.evaluation import eval_mode

INIT_STD = 0.02
ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT.

    Args:
        vocab_size: number of tokens V, >= 1; 256 for bytes.
        block_size: longest sequence in tokens, >= 1.
        n_layer: number of blocks, >= 1.
        n_head: attention heads, >= 1; divides n_embd into heads of an even size.
        n_embd: width of the residual stream, >= 2.
        dropout: probability in [0, 1), on the embedding, the attention weights and both residual branches.

    Raises:
        ValueError: if a field is out of range.
    """

    vocab_size: int = 256
    block_size: int = 128
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if self.n_embd % self.n_head != 0:
            raise ValueError(f"n_embd must be divisible by n_head, got {self.n_embd} and {self.n_head}")
        if (self.n_embd // self.n_head) % 2 != 0:
            raise ValueError(
                f"n_embd / n_head must be even, for rotary pairs, got {self.n_embd // self.n_head}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


class RMSNorm(nn.Module):
    r"""RMS norm: $y = g \cdot x / \sqrt{\mathrm{mean}(x^2) + \epsilon}$, over the last dimension.

    The mean is taken in float32 also for half-precision inputs, where the squares would overflow or vanish.

    Args:
        dim: size of the last dimension.
        eps: keeps a zero vector finite, > 0.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        if eps <= 0:
            raise ValueError(f"eps must be > 0, got {eps}")
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


def rotary_table(block_size: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position × frequency, each (block_size, head_dim / 2), float32."""
    frequencies = ROTARY_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(block_size, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + D/2}) by their position's angle.  x: (B, H, T, D); cos, sin: (T, D/2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which position t sees the positions 0 … t and no other."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.qkv_proj = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.out_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv_proj(x).view(batch, length, 3, self.n_head, width // self.n_head)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        attended = F.scaled_dot_product_attention(
            rotate(query, cos, sin),
            rotate(key, cos, sin),
            value,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
        )
        return self.out_proj(attended.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): the residual stream itself is never normalised."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.mlp_norm = RMSNorm(config.n_embd)
        self.up_proj = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.down_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.attn_norm(x), cos, sin))
        return x + self.drop(self.down_proj(F.gelu(self.up_proj(self.mlp_norm(x)))))


class GPT(nn.Module):
    """Decoder-only transformer over token ids.

    Init is GPT-2's: N(0, 0.02²), and N(0, (0.02 / √(2·n_layer))²) for the two projections that write into the
    residual stream, so that its variance at the start does not grow with depth. It differs from GPT-2 in
    RMSNorm for LayerNorm, rotary for learned positions, and linear layers without a bias.

    Randomness: the global generator is read by the init, and by dropout in training mode. Nothing else.

    Args:
        config: the shape; see GPTConfig.
    """

    rotary_cos: Tensor
    rotary_sin: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = RMSNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.embedding.weight  # tied: one tensor, two uses
        cos, sin = rotary_table(config.block_size, config.n_embd // config.n_head)
        # Not persistent: the tables follow from the config and have no place in a checkpoint.
        self.register_buffer("rotary_cos", cos, persistent=False)
        self.register_buffer("rotary_sin", sin, persistent=False)
        self._init_weights()

    def _init_weights(self) -> None:
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layer)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attn.qkv_proj.weight, std=INIT_STD)
            nn.init.normal_(block.attn.out_proj.weight, std=residual_std)
            nn.init.normal_(block.up_proj.weight, std=INIT_STD)
            nn.init.normal_(block.down_proj.weight, std=residual_std)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of the next token at every position.

        Args:
            input_ids: (B, T) int64 in [0, V), with 1 <= T <= block_size.

        Returns:
            (B, T, V); logits[:, t] depends on input_ids[:, :t + 1] only.

        Raises:
            ValueError: if input_ids is not (B, T), or T is out of range.
        """
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids must have the shape (B, T), got {tuple(input_ids.shape)}")
        length = input_ids.shape[1]
        if not 1 <= length <= self.config.block_size:
            raise ValueError(
                f"sequence length must be in [1, block_size={self.config.block_size}], got {length}"
            )
        cos, sin = self.rotary_cos[:length], self.rotary_sin[:length]
        x = self.drop(self.embedding(input_ids))  # (B, T, n_embd)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.lm_head(self.final_norm(x))  # (B, T, V)

    def num_parameters(self) -> int:
        """Trainable elements; the tied embedding counts once."""
        return sum(param.numel() for param in self.parameters() if param.requires_grad)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Append tokens, each sampled from softmax(logits / temperature), or the largest at temperature 0.

        Args:
            input_ids: (B, T) int64 prompt, T >= 1; what lies further back than block_size is not seen.
            max_new_tokens: how many to append, >= 0.
            temperature: >= 0.
            generator: source of randomness on the model's device. None means a fresh one with seed 0: the
                global generator is left alone, and two calls give the same text.

        Returns:
            (B, T + max_new_tokens).

        Raises:
            ValueError: if max_new_tokens or temperature is negative.
        """
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be >= 0, got {max_new_tokens}")
        if not temperature >= 0:
            raise ValueError(f"temperature must be >= 0, got {temperature}")
        if generator is None:
            generator = torch.Generator(input_ids.device).manual_seed(0)
        with eval_mode(self):
            for _ in range(max_new_tokens):
                logits = self(input_ids[:, -self.config.block_size :])[:, -1]  # (B, V)
                if temperature == 0:
                    next_ids = logits.argmax(dim=-1, keepdim=True)
                else:
                    probabilities = F.softmax(logits.float() / temperature, dim=-1)
                    next_ids = torch.multinomial(probabilities, 1, generator=generator)
                input_ids = torch.cat((input_ids, next_ids), dim=1)
        return input_ids
