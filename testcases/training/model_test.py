"""Tests of training/model.py."""

import math

import pytest
import torch
import torch.nn.functional as F

from training.model import GPT, GPTConfig, RMSNorm, rotary_table, rotate


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 32, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("position", [0, 7, 15])
def test_logits_before_a_changed_token_stay_and_those_from_it_on_move(tiny_gpt, ids, position):
    model = tiny_gpt()
    changed = ids.clone()
    changed[:, position] = (changed[:, position] + 1) % 32
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :position], after[:, :position])
    differs = (before != after).any(dim=-1).all(dim=0)
    assert differs[position:].all(), "every later position must see the change"


def test_logits_depend_on_the_order_of_the_prefix(tiny_gpt, ids):
    model = tiny_gpt(n_layer=1)  # in one layer, attention without positions would see a bag of tokens
    swapped = ids.clone()
    swapped[:, [0, 1]] = ids[:, [1, 0]]
    assert not torch.allclose(model(ids)[:, -1], model(swapped)[:, -1], atol=1e-7)


def test_rotation_makes_the_product_depend_on_the_distance_alone():
    cos, sin = rotary_table(block_size=64, head_dim=8)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def product(m: int, n: int) -> torch.Tensor:
        return (
            rotate(query, cos[m : m + 1], sin[m : m + 1]) * rotate(key, cos[n : n + 1], sin[n : n + 1])
        ).sum()

    # float32 angles up to 64: cos and sin carry about 64 · 6e-8 of error
    torch.testing.assert_close(product(5, 2), product(50, 47), atol=1e-4, rtol=0)
    assert abs(product(5, 2) - product(5, 4)) > 1e-2


def test_block_knows_distances_and_not_places(tiny_gpt):
    block = tiny_gpt().blocks[0]
    x = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        block.attn.qkv_proj.weight.mul_(40)  # sharp attention: positions matter
    cos, sin = rotary_table(block_size=32, head_dim=8)
    here = block(x, cos[:8], sin[:8])
    # float32 angles, see above
    torch.testing.assert_close(block(x, cos[16:24], sin[16:24]), here, atol=1e-5, rtol=0)
    assert not torch.allclose(block(x, cos[0:16:2], sin[0:16:2]), here, atol=1e-3), "other distances"


def test_parameters_are_counted_once_and_the_head_is_tied(tiny_gpt):
    model = tiny_gpt()
    assert model.lm_head.weight is model.embedding.weight
    matrices = 32 * 16 + 2 * (16 * 48 + 16 * 16 + 2 * 16 * 64)
    assert model.num_parameters() == matrices + 5 * 16
    model.embedding.weight.requires_grad_(False)
    assert model.num_parameters() == matrices + 5 * 16 - 32 * 16, "frozen ones are not trainable"


def test_init_scales_the_projections_into_the_residual_stream_by_depth():
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=8, n_embd=128))
    for block in model.blocks:
        for narrow in (block.attn.out_proj, block.down_proj):
            assert narrow.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
        for wide in (block.attn.qkv_proj, block.up_proj):
            assert wide.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_loss_of_a_new_model_is_that_of_a_guess():
    torch.manual_seed(0)
    ids = torch.randint(0, 256, (4, 128))
    logits = GPT(GPTConfig())(ids)
    assert logits.shape == (4, 128, 256)
    assert F.cross_entropy(logits.flatten(0, 1), ids.roll(1).flatten()).item() == pytest.approx(
        math.log(256), abs=0.1
    )


def test_rms_norm_equals_torch_and_does_not_overflow_in_half_precision():
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    norm = RMSNorm(8)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 8))
    # the order of the float32 operations is ours
    torch.testing.assert_close(norm(x), F.rms_norm(x, (8,), norm.weight, 1e-5), atol=1e-6, rtol=0)
    large = torch.full((8,), 300.0, dtype=torch.float16)  # 300² is beyond float16
    assert torch.equal(RMSNorm(8).half()(large), torch.ones(8, dtype=torch.float16))


def test_sequence_longer_than_block_size_is_refused_with_both_numbers(tiny_gpt):
    with pytest.raises(ValueError, match=r"block_size=16\], got 17"):
        tiny_gpt()(torch.zeros(1, 17, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(4,), (1, 2, 3), (2, 0)])
def test_input_of_another_shape_is_refused(tiny_gpt, shape):
    with pytest.raises(ValueError, match="got"):
        tiny_gpt()(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be an integer >= 1, got 0"),
        ({"n_layer": -1}, "n_layer must be an integer >= 1, got -1"),
        ({"block_size": 1.5}, "block_size must be an integer >= 1, got 1.5"),
        ({"n_embd": 30, "n_head": 4}, "n_embd must be divisible by n_head, got 30 and 4"),
        ({"n_embd": 12, "n_head": 4}, "must be even, for rotary pairs, got 3"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": float("nan")}, r"dropout must be in \[0, 1\), got nan"),
    ],
)
def test_config_refuses_a_field_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**changes)


def test_training_is_repeatable_bit_for_bit_with_dropout(tiny_gpt, ids):
    def train() -> list[torch.Tensor]:
        torch.manual_seed(5)
        model = tiny_gpt(dropout=0.2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
            optimizer.step()
        return [param.detach() for param in model.parameters()]

    first, second = train(), train()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_dropout_acts_in_training_mode_alone_and_only_then_reads_the_global_generator(tiny_gpt, ids):
    model = tiny_gpt(dropout=0.5)
    assert not torch.equal(model(ids), model(ids))
    state = torch.get_rng_state()
    model.eval()
    assert torch.equal(model(ids), model(ids))
    assert torch.equal(torch.get_rng_state(), state)


def test_rotary_tables_are_not_part_of_a_checkpoint(tiny_gpt):
    model = tiny_gpt()
    assert model.state_dict().keys() == dict(model.named_parameters(remove_duplicate=False)).keys()


def test_generate_appends_the_largest_logit_at_temperature_zero(tiny_gpt, ids):
    model = tiny_gpt()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv_proj.weight.mul_(40)
            block.attn.out_proj.weight.mul_(40)  # a text that hangs on all of its context, and not one letter
    text = model.generate(ids[:, :3], 60, temperature=0)  # 63 tokens: more than block_size
    assert torch.equal(text[:, :3], ids[:, :3])
    assert len(text[0].unique()) > 4
    for length in range(3, 63):
        want = model(text[:, max(0, length - 16) : length])[:, -1].argmax(dim=-1)
        assert torch.equal(text[:, length], want), length


def test_generate_samples_from_its_own_generator(tiny_gpt, ids):
    model = tiny_gpt(dropout=0.5)
    state = torch.get_rng_state()

    def sample(seed: int) -> list[int]:
        return model.generate(ids[:1, :3], 12, generator=torch.Generator().manual_seed(seed))[0].tolist()

    assert sample(1) == sample(1) != sample(2)
    assert torch.equal(model.generate(ids, 4), model.generate(ids, 4)), "without a generator, too"
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training, "the mode is as before"
    assert all(param.grad is None for param in model.parameters())


def test_temperature_divides_the_logits(tiny_gpt, ids):
    model = tiny_gpt()
    with torch.no_grad():
        model.embedding.weight.mul_(20)  # decided logits
    cold, hot = (
        [
            model.generate(ids[:1], 1, temperature, torch.Generator().manual_seed(seed))[0, -1].item()
            for seed in range(40)
        ]
        for temperature in (0.01, 100.0)
    )
    assert len(set(cold)) == 1
    assert len(set(hot)) > 10


@pytest.mark.parametrize("temperature", [-1.0, float("nan")])
def test_generate_refuses_a_bad_temperature_or_count(tiny_gpt, ids, temperature):
    with pytest.raises(ValueError, match="temperature must be >= 0"):
        tiny_gpt().generate(ids, 1, temperature)
    with pytest.raises(ValueError, match="max_new_tokens must be >= 0, got -1"):
        tiny_gpt().generate(ids, -1)
