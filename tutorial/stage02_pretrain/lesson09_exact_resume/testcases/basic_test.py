"""Basic tests of lesson 09: exact resume. Run: pytest testcases/basic_test.py"""

import hashlib
import io
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset


def draw(name):
    """The next number of a global generator."""
    return {
        "python": random.random,
        "numpy": lambda: float(np.random.rand()),
        "torch": lambda: float(torch.rand(())),
    }[name]()


def draw_pair_half(name):
    """The next normal number: two are computed at a time, and one is kept back."""
    return {
        "python": lambda: random.gauss(0.0, 1.0),
        "numpy": lambda: float(np.random.randn()),
        "torch": lambda: float(torch.randn(())),
    }[name]()


def global_states():
    """The states of the global generators, in a form to compare."""
    words = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(words[1].astype(np.int64)), int(words[2]), int(words[3])),
        "torch": torch.get_rng_state(),
    }


def through_a_file(state):
    """What a safe load makes of `state`, or the error as a string."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        return torch.load(buffer, weights_only=True)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"


def build(rng, lr=0.1):
    """Two linear layers, AdamW in two groups, a schedule, a loss scaler."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=rng))
    groups = [
        {"params": [model[2].weight, model[0].weight]},
        {"params": [model[0].bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.5**update)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    return model, optimizer, scheduler, scaler


def update(model, optimizer, scheduler, scaler, rng):
    """One update on random data."""
    loss = model(torch.randn(5, 3, generator=rng)).square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    scheduler.step()
    optimizer.zero_grad(set_to_none=True)


def moments(model, optimizer):
    return {
        name: {key: value.clone() for key, value in optimizer.state[param].items()}
        for name, param in model.named_parameters()
        if param in optimizer.state
    }


def weights(model):
    return {name: param.detach().clone() for name, param in model.named_parameters()}


# ------------------------------------------------------------------------------ 9.1, 9.2 the global generators


@pytest.mark.task("9.1")
def test_rng_state_survives_a_safe_load(lesson, expect):
    """get_rng_state() → torch.save → torch.load(weights_only=True), after an odd number of normal draws."""
    for name in ("python", "numpy", "torch"):
        draw_pair_half(name)
    state = lesson.rng.get_rng_state()
    for name in ("python", "numpy", "torch", "cuda"):
        expect.true(name, name in state, expected="a key of the state", got=sorted(map(str, state)))
        loaded = through_a_file(state[name])
        refused = isinstance(loaded, str)
        expect.true(
            f"{name} after a safe load", not refused, expected="plain numbers and tensors", got=loaded
        )


@pytest.mark.task("9.1", "9.2")
@pytest.mark.parametrize("name", ["python", "numpy", "torch"])
def test_rng_state_brings_the_same_numbers_again(lesson, expect, name):
    """700 draws, get_rng_state(), five draws; other draws and another seed; set_rng_state(), five draws."""
    for _ in range(700):
        draw(name)
    state = lesson.rng.get_rng_state()
    want = [draw(name) for _ in range(5)]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    draw(name)
    lesson.rng.set_rng_state(state)
    for step in range(5):
        expect.equal(
            f"{name} draw", draw(name), want[step], source="the draws after get_rng_state", step=step
        )


@pytest.mark.task("9.1", "9.2")
@pytest.mark.parametrize("name", ["python", "numpy", "torch"])
def test_rng_state_keeps_the_half_of_a_pair(lesson, expect, name):
    """One normal number is drawn, so that its twin waits; get, three draws, set, three draws."""
    draw_pair_half(name)
    state = lesson.rng.get_rng_state()
    want = [draw_pair_half(name) for _ in range(3)]
    lesson.rng.set_rng_state(state)
    for step in range(3):
        got, source = draw_pair_half(name), "the twin first, then new numbers"
        expect.equal(f"normal {name} draw", got, want[step], source=source, step=step)


# ---------------------------------------------------------------------------------- 9.3 generators of their own


@pytest.mark.task("9.3")
def test_sample_generator_is_a_function_of_seed_epoch_and_index(lesson, expect):
    """Seeds, epochs and indices 0, 1, 2 and 3; four numbers from each of the 64 generators, twice."""
    values = (0, 1, 2, 3)
    seen = {}
    for seed, epoch, index in [(s, e, i) for s in values for e in values for i in values]:
        first = torch.rand(4, generator=lesson.sampler.sample_generator(seed, epoch, index))
        again = torch.rand(4, generator=lesson.sampler.sample_generator(seed, epoch, index))
        triple = f"(seed {seed}, epoch {epoch}, index {index})"
        expect.equal(f"draws of {triple}", again, first, source="the same triple, the same numbers")
        twin = seen.setdefault(tuple(first.tolist()), triple)
        expected = "numbers that no other triple has"
        expect.true(f"draws of {triple}", twin == triple, expected=expected, got=f"those of {twin}")


@pytest.mark.task("9.3")
def test_order_is_a_new_permutation_each_epoch(lesson, expect):
    """n = 20, seed 5, epochs 0 to 3, from a sampler that goes through them and from new ones."""
    sampler = lesson.sampler.ResumableSampler(20, seed=5)
    orders = []
    for epoch in range(4):
        sampler.epoch = epoch
        order = sampler.order()
        expect.equal("sorted order", sorted(order), list(range(20)), source="each index once", step=epoch)
        expect.true("order", order not in orders, expected="another than before", got=order, step=epoch)
        other = lesson.sampler.ResumableSampler(20, seed=5)
        other.epoch = epoch
        source = "the same seed and epoch, in a sampler that saw no other epoch"
        expect.equal("order", other.order(), order, source=source, step=epoch)
        orders.append(order)
    other = lesson.sampler.ResumableSampler(20, seed=6)
    expect.true("order of seed 6", other.order() != orders[0], expected="not that of seed 5", got=orders[0])
    plain = lesson.sampler.ResumableSampler(4, seed=5, shuffle=False).order()
    expect.equal("order without shuffle", plain, [0, 1, 2, 3], source="0, 1, …, n − 1")


@pytest.mark.task("9.3")
@pytest.mark.parametrize("what", ["order", "sample_generator", "loader"])
def test_drawing_leaves_the_global_generators_alone(lesson, expect, what):
    """An order, a sample's generator, or the beginning of a loader's epoch; the global states before and after."""

    def act():
        if what == "order":
            return lesson.sampler.ResumableSampler(9, seed=1).order()
        if what == "sample_generator":
            return torch.rand(3, generator=lesson.sampler.sample_generator(1, 2, 3))
        loader = lesson.sampler.make_loader(TensorDataset(torch.arange(5)), 2, sampler=[3, 1, 4, 0, 2])
        return [batch[0].tolist() for batch in loader]

    before = global_states()
    first = act()
    expect.equal("global states", global_states(), before, source="before the call")
    torch.manual_seed(99), random.seed(99), np.random.seed(99)
    expect.equal(what, act(), first, source="the same under another global seed")
    if what == "loader":
        expect.equal(
            "batches", first, [[3, 1], [4, 0], [2]], source="the sampler's order, the short batch kept"
        )


# ----------------------------------------------------------------------------------------------- 9.4 the sampler


@pytest.mark.task("9.4")
def test_sampler_hands_out_what_was_not_consumed(lesson, expect):
    """n = 7, no shuffle; 5 indices are fetched, 3 are consumed, the last 2 are fetched, 4 are consumed."""
    sampler = lesson.sampler.ResumableSampler(7, seed=0, shuffle=False)
    sampler.set_epoch(0)
    ahead = iter(sampler)
    for _ in range(5):
        next(ahead)
    for step, (consumed, want) in enumerate([(0, [0, 1, 2, 3, 4, 5, 6]), (3, [3, 4, 5, 6]), (4, [])]):
        sampler.advance(consumed)
        source = "0 … 6 from the first index that is not consumed; fetching consumes nothing"
        expect.equal("indices", list(sampler), want, source=source, step=step)
        if step == 1:
            expect.equal("indices fetched ahead", list(ahead), [5, 6], source="an iterator that has begun")
    expect.equal("len(sampler)", len(sampler), 7, source="n, always")


@pytest.mark.task("9.3", "9.4")
def test_sampler_returns_to_its_place_and_the_next_epoch_is_whole(lesson, expect):
    """n = 9, epoch 2: 4 consumed, state_dict, a new sampler; then set_epoch(2), then set_epoch(3)."""
    sampler = lesson.sampler.ResumableSampler(9, seed=4)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        order = list(sampler)
        source = "each index once: a new epoch begins at position 0"
        expect.equal("sorted indices", sorted(order), list(range(9)), source=source, step=epoch)
        sampler.advance(4 if epoch == 2 else 9)
    state = sampler.state_dict()
    resumed = lesson.sampler.ResumableSampler(9, seed=4)
    resumed.load_state_dict(through_a_file(state))
    expect.equal("epoch", resumed.epoch, 2, source="the epoch under way, counted from 0", step=2)
    resumed.set_epoch(2)
    source = "the last 5 of the interrupted epoch: set_epoch(2) in epoch 2 stays where it is"
    expect.equal("indices", list(resumed), order[4:], source=source, step=2)
    resumed.advance(5)
    sampler.advance(5)
    for epoch in (3, 4):
        resumed.set_epoch(epoch)
        sampler.set_epoch(epoch)
        got, source = list(resumed), "all 9 of the next epoch: the skip is not repeated"
        expect.equal("sorted indices", sorted(got), list(range(9)), source=source, step=epoch)
        expect.equal("indices", got, list(sampler), source="the uninterrupted sampler", step=epoch)
        resumed.advance(9), sampler.advance(9)


# ------------------------------------------------------------------------------------------- 9.5 capture


@pytest.mark.task("9.1", "9.5")
def test_capture_is_a_copy_of_everything(lesson, expect, rng):
    """Two updates, capture, two more updates; then what was captured is compared with what was there."""
    parts = build(rng)
    model, optimizer = parts[:2]
    for _ in range(2):
        update(*parts, rng)
    want = weights(model)
    want_moments = moments(model, optimizer)
    rng_before = global_states()
    sampler = lesson.sampler.ResumableSampler(6, seed=0)
    sampler.epoch, sampler.position = 1, 2
    extra = [1.5]
    state = lesson.checkpoint.capture(
        *parts, sampler=sampler, epoch=1, global_step=2, micro_step=3, losses=extra
    )
    expect.equal("global states", global_states(), rng_before, source="capture draws nothing")
    for _ in range(2):
        update(*parts, rng)
    extra.append(0.5)
    sampler.position = 4
    source = "at the moment of capture"
    expect.equal("keys", sorted(state), sorted(lesson.checkpoint.KEYS), source="KEYS")
    expect.equal("weights", dict(state["model_state_dict"]), want, source=source)
    names = [name for group in state["optimizer_param_names"] for name in group]
    saved = {names[index]: value for index, value in state["optimizer_state_dict"]["state"].items()}
    expect.equal("moments", saved, want_moments, source=source)
    lr = state["optimizer_state_dict"]["param_groups"][0]["lr"]
    expect.equal("lr", lr, 0.1 * 0.25, source="0.1 · ½², after two updates")
    expect.equal("scheduler", state["scheduler_state_dict"]["last_epoch"], 2, source="two updates")
    scale = (state["scaler_state_dict"] or {}).get("scale")
    expect.equal("scale", scale, 128.0, source="64, doubled after 2 good steps")
    expect.equal("position", state["sampler_state_dict"]["position"], 2, source=source)
    counters = [state[key] for key in ("epoch", "global_step", "micro_step")]
    expect.equal("epoch, global_step, micro_step", counters, [1, 2, 3], source="the arguments")
    expect.equal("extra", state["extra"], {"losses": [1.5]}, source=source)
    param = nn.Parameter(torch.ones(1))
    lesson.checkpoint.snapshot([param])
    source = "taking a copy changes nothing: the original goes on learning"
    expect.equal("requires_grad of the original", param.requires_grad, True, source=source)


@pytest.mark.task("9.5")
def test_capture_tells_no_gradient_from_a_gradient_of_zero(lesson, expect, rng):
    """Gradients: random, 0, and none; captured, and then the live ones are changed."""
    model = build(rng)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[0].weight.grad = torch.randn(4, 3, generator=rng)
    model[0].bias.grad = torch.zeros(4)
    want = {
        "0.weight": model[0].weight.grad.clone(),
        "0.bias": torch.zeros(4),
        "2.weight": None,
        "2.bias": None,
    }
    state = lesson.checkpoint.capture(model, optimizer)
    model[0].weight.grad.zero_()
    model[0].bias.grad.add_(1.0)
    expect.equal(
        "gradients", state["gradients"], want, source="param.grad of each name at the moment of capture"
    )
    for name in ("scheduler", "scaler", "sampler"):
        expect.equal(name, state[f"{name}_state_dict"], None, source="there was none")


@pytest.mark.task("9.5")
def test_param_names_follow_the_groups_of_the_optimizer(lesson, expect, rng):
    """Two groups: (2.weight, 0.weight) and (0.bias); 2.bias is in none."""
    model, optimizer, _, _ = build(rng)
    got = lesson.checkpoint.param_names(model, optimizer)
    want = [["2.weight", "0.weight"], ["0.bias"]]
    expect.equal("names", got, want, source="the optimizer's groups, in its order")


# ------------------------------------------------------------------------------------------- 9.6 restore


@pytest.mark.task("9.1", "9.2", "9.5", "9.6")
def test_restore_brings_everything_back(lesson, expect, rng):
    """Three updates and a waiting gradient; all is built anew with other weights and restored."""
    parts = build(rng)
    for _ in range(3):
        update(*parts, rng)
    parts[0][0].weight.grad = torch.randn(4, 3, generator=rng)
    state = lesson.checkpoint.capture(*parts, epoch=4, global_step=3, micro_step=1, losses=[2.0])
    want = [draw(name) for name in ("python", "numpy", "torch")]

    fresh = build(rng)
    model, optimizer, scheduler, scaler = fresh
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    progress = lesson.checkpoint.restore(state, *fresh)
    got = [draw(name) for name in ("python", "numpy", "torch")]
    source = "the training that was captured"
    expect.equal("weights", weights(model), weights(parts[0]), source=source)
    expect.equal("moments", moments(model, optimizer), moments(*parts[:2]), source=source)
    grads = {name: param.grad for name, param in model.named_parameters()}
    want_grads = {name: param.grad for name, param in parts[0].named_parameters()}
    expect.equal("gradients", grads, want_grads, source=source)
    lrs = [group["lr"] for group in optimizer.param_groups]
    expect.equal("lr in the optimizer", lrs, [0.1 / 8] * 2, source="0.1 · ½³")
    expect.equal("scheduler", scheduler.state_dict(), parts[2].state_dict(), source=source)
    expect.equal("scaler", scaler.state_dict(), parts[3].state_dict(), source=source)
    expect.equal("next draws of random, numpy, torch", got, want, source="the draws that followed capture")
    wanted = {"epoch": 4, "global_step": 3, "micro_step": 1, "losses": [2.0]}
    expect.equal("progress", progress, wanted, source="the arguments of capture")


@pytest.mark.task("9.5", "9.6")
@pytest.mark.parametrize(
    "what", ["another shape", "another dtype", "a layer more", "another dataset", "no scaler"]
)
def test_restore_of_a_foreign_checkpoint_touches_nothing(lesson, expect, rng, what):
    """A checkpoint of a model, a dataset or a set of parts that is not ours."""
    model, optimizer, scheduler, scaler = build(rng)
    sampler = lesson.sampler.ResumableSampler(10 if what == "another dataset" else 9, seed=0)
    if what == "another shape":
        model[2].bias = nn.Parameter(torch.zeros(3))
    elif what == "another dtype":
        model[2].bias = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    elif what == "a layer more":
        model.append(nn.Linear(2, 2))
    elif what == "no scaler":
        scaler = None
    state = lesson.checkpoint.capture(model, optimizer, scheduler, scaler, sampler)

    fresh = build(rng, lr=0.7)
    before = weights(fresh[0]), fresh[1].param_groups[0]["lr"], global_states()
    mine = lesson.sampler.ResumableSampler(9, seed=0)
    with expect.raises(ValueError, source="a half-restored training would go on with no error at all"):
        lesson.checkpoint.restore(state, *fresh, mine)
    after = weights(fresh[0]), fresh[1].param_groups[0]["lr"], global_states()
    for name, got, want in zip(("weights", "lr", "global states"), after, before, strict=True):
        expect.equal(name, got, want, source="before restore: all or nothing")


# ------------------------------------------------------------------------------------------- 9.7 the file


@pytest.mark.task("9.7")
def test_save_writes_the_state_and_its_digest(lesson, expect, rng, tmp_path):
    """Two states to the same path, one after the other; load, and the digest file as sha256sum reads it."""
    path = tmp_path / "run.pt"
    for step in (1, 2):
        state = {"x": torch.randn(50, generator=rng), "step": step, "losses": [0.5] * step}
        lesson.checkpoint.save(state, path)
        expect.equal("loaded", lesson.checkpoint.load(path), state, source="what was saved", step=step)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        text = (tmp_path / "run.pt.sha256").read_text()
        expect.equal("digest file", text, f"{digest}  run.pt\n", source="sha256sum run.pt", step=step)
        files = sorted(file.name for file in tmp_path.iterdir())
        expect.equal("files", files, ["run.pt", "run.pt.sha256"], source="no litter", step=step)


@pytest.mark.task("9.7")
@pytest.mark.parametrize(
    "damage", ["a flipped bit", "cut off", "something appended", "no digest", "empty digest"]
)
def test_load_refuses_a_damaged_file(lesson, expect, rng, tmp_path, damage):
    """A saved state of 1000 numbers; then the file or its digest is damaged."""
    path = tmp_path / "run.pt"
    lesson.checkpoint.save({"x": torch.randn(1000, generator=rng)}, path)
    data, digests = bytearray(path.read_bytes()), tmp_path / "run.pt.sha256"
    if damage == "a flipped bit":
        data[len(data) // 2] ^= 1
    elif damage == "cut off":
        del data[-100:]
    elif damage == "something appended":
        data += b"\0" * 100
    elif damage == "no digest":
        digests.unlink()
    else:
        digests.write_text("")
    path.write_bytes(data)
    with expect.raises(ValueError, source="torch.load by itself accepts nearly every flipped bit"):
        lesson.checkpoint.load(path)
