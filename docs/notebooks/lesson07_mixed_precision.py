"""Lesson 07 in pictures. `python -m course notebooks build 07` writes the notebooks from this file."""

# %% [markdown] en
# # Lesson 07 in pictures · Mixed precision
#
# Seven experiments with what you write in [loss_scaler.py](loss_scaler.py), [precision.py](precision.py) and
# [trainer.py](trainer.py). Each asks a question: guess first, then run the cell, then turn the knobs at its top.
#
# Where your tasks are written, the cells run on *your* code; elsewhere on a reference, and the line above the picture
# says which. Edit, save, and run a cell again: nothing needs a restart. [The lesson](README.md)

# %% [markdown] zh
# # 第 07 课图解 · 混合精度
#
# 七个实验，用的是你在 [loss_scaler.py](loss_scaler.py)、
# [precision.py](precision.py) 和 [trainer.py](trainer.py) 里写的代码。每个实验先提一个问题：先猜，再运行单元，
# 然后拧一拧最上面的旋钮，再跑一遍。
#
# 写好的任务用*你的*代码运行，没写的用参考实现代替，图上方那一行会说明是哪一种。
# 改完代码保存，再运行一次单元即可，不用重启。[本课正文](README_zh.md)

# %%
import math
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import nn

from course.notebook import GREY, experiment, mine
from training.losses import token_loss
from training.model import GPT, GPTConfig

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def torch_scaler(**options):
    """torch.amp.GradScaler on the CPU: the same scale and the same skipped steps as in this lesson."""
    return torch.amp.GradScaler("cpu", **options)


def my_scaler(needs="7.1 7.2 7.3"):
    return mine("07", "loss_scaler.LossScaler", needs=needs, reference=torch_scaler)


def my_masters():
    return mine("07", "precision.MasterWeights", needs="7.5 7.6")


# %% [markdown] en
# ## 1 · Where are the neighbours?
#
# Between two numbers that a format can hold there is a gap. The picture shows the gap beside a number x, as a share
# of x.
#
# **Predict.** Which of the two 16-bit formats has the smaller gaps around 1? And at 10⁻⁷?

# %% [markdown] zh
# ## 1 · 邻居有多远？
#
# 一种格式能表示的两个相邻数之间有空隙。图里画的是 x 旁边的空隙占 x 的比例。
#
# **先猜。** 在 1 附近，两种 16 位格式谁的空隙小？在 10⁻⁷ 附近呢？

# %%
lowest, highest = -12, 8  # two knobs: powers of ten


def gap_beside(x, dtype):
    """From x, rounded down to the format, to the next larger number of the format; NaN where there is none."""
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    rounded = x.to(dtype)
    gap = (rounded.view(bits) + 1).view(dtype).double() - rounded.double()
    return torch.where(gap.isfinite(), gap, math.nan)


with experiment():
    x = torch.logspace(lowest, highest, 600, dtype=torch.float64)
    fig, ax = plt.subplots(figsize=(7, 3))
    for name, dtype in DTYPES.items():
        ax.plot(x, gap_beside(x, dtype) / x, label=name)
        info = torch.finfo(dtype)
        smallest = info.smallest_normal * info.eps
        print(
            f"{name}  largest {info.max:8.2g}   smallest > 0 {smallest:8.2g}   next after 1: 1 + {info.eps:.2g}"
        )
    ax.axhline(1, color=GREY, lw=1)
    ax.set(xscale="log", yscale="log", xlabel="x", ylabel="gap / x", ylim=(1e-8, 30))
    ax.legend(loc="upper right")

# %% [markdown] en
# **What you saw.** fp16 is eight times finer than bf16 around 1, but only between 6·10⁻⁵ and 65504. Below, its gap
# stays 6·10⁻⁸ whatever x is; where the line crosses 1, the gap is as large as the number, and the next stop is 0.
# bf16 reaches as far as fp32 does, with steps of almost one per cent.
#
# fp16 has too little range: experiments 2 to 4. bf16 has too few digits: experiment 5.

# %% [markdown] zh
# **看到了什么。** 在 1 附近，fp16 比 bf16 细八倍，但只限于 6·10⁻⁵ 到 65504 之间。再往下，不管 x 多小，
# 空隙都是 6·10⁻⁸；曲线越过 1 的地方，空隙已经和数本身一样大，再下去就是 0。bf16 的范围和 fp32 一样宽，
# 但步子接近百分之一。
#
# fp16 缺的是范围：见实验 2 到 4。bf16 缺的是位数：见实验 5。

# %% [markdown] en
# ## 2 · Where do the gradients of a language model lie?
#
# A small GPT, one batch of text, all its gradients. The grey areas are what fp16 cannot hold: too small on the left,
# too large on the right.
#
# **Predict.** A window of a million tokens divides each gradient by a million. How many become 0: 1 %, 30 %, or 99 %?

# %% [markdown] zh
# ## 2 · 语言模型的梯度落在哪里？
#
# 一个小 GPT，一批文本，画出全部梯度。灰色区域是 fp16 装不下的：左边太小，右边太大。
#
# **先猜。** 窗口有一百万个 token，每个梯度就要除以一百万。有多少会变成 0：1 %、30 % 还是 99 %？

# %%
window_tokens, scale = 2**20, 2.0**16  # two knobs; try 2**24 tokens, and a scale of 2.0**34

CONFIG = GPTConfig(block_size=32, n_layer=2, n_head=2, n_embd=64)
TABLE = " ".join(f"{a} times {b} is {a * b}." for a in range(2, 30) for b in range(2, 30))
SMALLEST, LARGEST = 2.0**-25, 65504.0  # of fp16: what is not larger than the first rounds to 0


def make_model():
    torch.manual_seed(0)
    return GPT(CONFIG)


def make_batches(count, rows=8):
    """Rows of the multiplication table, as bytes."""
    text = torch.tensor(list(TABLE.encode()))
    starts = torch.randint(len(text) - 32, (count, rows), generator=torch.Generator().manual_seed(1))
    chunks = text[starts.unsqueeze(-1) + torch.arange(33)]
    return [{"input_ids": chunk[:, :-1], "labels": chunk[:, 1:]} for chunk in chunks]


def gradients(precision, scale):
    """All gradients of one batch's share in the window's loss times `scale`, as one vector."""
    model, batch = make_model(), make_batches(1)[0]
    with torch.autocast("cpu", torch.float16, enabled=precision == "fp16"):
        logits = model(batch["input_ids"])
    loss = token_loss(logits, batch["labels"]) / window_tokens
    LossScaler(init_scale=scale).scale(loss).backward()
    return torch.cat([param.grad.double().flatten() for param in model.parameters()])


with experiment():
    LossScaler = my_scaler("7.1")
    fig, axes = plt.subplots(2, 1, figsize=(7, 3.6), sharex=True)
    for ax, s in zip(axes, (1.0, scale), strict=True):
        true, got = gradients("fp32", s).abs(), gradients("fp16", s)
        ax.hist(true[true > 0].log2(), bins=range(-45, 25), color="C0", label=f"scale 2^{math.log2(s):.0f}")
        for start, end in ((-45, math.log2(SMALLEST)), (math.log2(LARGEST), 24)):
            ax.axvspan(start, end, color=GREY, alpha=0.3, lw=0)
        ax.set(ylabel="gradients", xlim=(-45, 24))
        ax.legend(loc="upper right")
        zeros, infinite = ((got == 0) & (true > 0)).double().mean(), (~got.isfinite()).double().mean()
        print(
            f"scale 2^{math.log2(s):<3.0f} in fp16: {float(zeros):4.0%} are 0, {float(infinite):4.0%} are inf or NaN"
        )
    axes[1].set_xlabel("log2 of a gradient's size, on its way through the backward pass")

# %% [markdown] en
# **What you saw.** Without a scale almost a third of the gradients is 0 in fp16. Nobody reports it: no error, no NaN,
# only parts of the model that stop learning. The scale moves the whole histogram to the right, where there was room.
# Backward is linear, so one multiplication of the loss moves them all.

# %% [markdown] zh
# **看到了什么。** 不缩放时，将近三分之一的梯度在 fp16 里是 0。没有任何提示：不报错，也没有 NaN，
# 只是模型的一部分不再学习。缩放把整个直方图往右推，那里原本空着。反向传播是线性的，所以只要给损失乘一次，
# 所有梯度就都跟着移动。

# %% [markdown] en
# ## 3 · Which scale is right?
#
# The same model and batch, through fp16 (by `torch.autocast`), with scales from 2⁻⁸ to 2⁴⁴.
#
# **Predict.** Is there one right scale, or a range of them? How wide, in powers of two?

# %% [markdown] zh
# ## 3 · 缩放因子取多大才对？
#
# 同一个模型、同一批数据，用 fp16 跑（由 `torch.autocast` 转换），缩放因子从 2⁻⁸ 到 2⁴⁴。
#
# **先猜。** 合适的值只有一个，还是有一段？有多宽，跨几个 2 的幂？

# %%
exponents = range(-8, 45, 4)  # a knob

with experiment():
    LossScaler = my_scaler("7.1")
    true, zeros, infinite = gradients("fp32", 1.0), [], []
    for exponent in exponents:
        got = gradients("fp16", 2.0**exponent)
        zeros.append(float(((got == 0) & (true != 0)).double().mean()))
        infinite.append(float((~got.isfinite()).double().mean()))
    fig, ax = plt.subplots(figsize=(7, 2.6))
    ax.plot(exponents, zeros, marker="o", ms=4, label="0")
    ax.plot(exponents, infinite, marker="s", ms=4, label="inf or NaN")
    ax.set(xlabel="log2 of the scale", ylabel="share of the gradients")
    ax.legend(loc="center left")
    usable = [e for e, z, i in zip(exponents, zeros, infinite, strict=True) if z < 0.01 and i == 0]
    print(f"under 1 % lost, none inf: 2^{usable[0]} to 2^{usable[-1]}")

# %% [markdown] en
# **What you saw.** A wide valley: some twenty powers of two. So nobody has to find *the* scale. But a single inf
# spoils the update, and the valley moves while the model learns. Hence a scaler that searches by itself.

# %% [markdown] zh
# **看到了什么。** 一个很宽的谷，约有二十个 2 的幂。所以不必找到“那一个”值。但只要出现一个 inf，这次更新就作废；
# 而且随着训练进行，谷的位置还会移动。所以需要一个自己会找的缩放器。

# %% [markdown] en
# ## 4 · How does the scaler follow?
#
# Now the gradients swell and shrink during the run. The grey line is the largest scale that would not overflow; the
# scaler does not know it.
#
# **Predict.** How often does it overstep, with `growth_interval = 20`: all the time, or about once in 20 updates? And
# what does a shorter interval cost?

# %% [markdown] zh
# ## 4 · 缩放器怎样跟上？
#
# 这回梯度在训练中时大时小。灰线是不会溢出的最大缩放因子，缩放器并不知道它在哪里。
#
# **先猜。** `growth_interval = 20` 时，它多久越线一次：一直越，还是大约每 20 次更新一次？间隔取短一些，代价是什么？

# %%
growth_interval, init_scale, updates = 20, 2.0**26, 300  # three knobs

with experiment():
    LossScaler = my_scaler()
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler = LossScaler(init_scale=init_scale, growth_interval=growth_interval)
    scales, limits, left_out = [], [], []
    for update in range(updates):
        largest = 2.0 ** (-2 + 3 * math.sin(update / 45) + 0.5 * float(torch.randn(())))  # the true gradient
        scaler.scale(torch.zeros(()))  # torch's scaler wants to see a loss before a gradient
        scales.append(scaler.get_scale())
        limits.append(LARGEST / largest)
        weight.grad = torch.tensor([largest * scales[-1]]).half().float()  # what fp16 makes of it
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < scales[-1]:
            left_out.append(update)
    fig, ax = plt.subplots(figsize=(7, 3))
    ax.plot(limits, color=GREY, lw=1, label="overflow above this")
    ax.step(range(updates), scales, where="post", color="C0", ls="-", label="scale")
    ax.plot(left_out, [scales[i] for i in left_out], "x", color="C1", ms=7, mew=2, label="update left out")
    ax.set(xlabel="update", ylabel="scale")
    ax.set_yscale("log", base=2)
    ax.legend(loc="upper center")
    print(
        f"left out: {len(left_out)} of {updates}, the first {sum(i < 20 for i in left_out)} of them while it searched"
    )

# %% [markdown] en
# **What you saw.** It begins too high and falls by a factor of two with each update that is left out. Then a
# sawtooth: 20 clean updates, one step up; when the gradients grow, a few steps down. Each × costs one batch, so the
# usual interval is 2000. Here 20 makes the sawtooth visible.
#
# **Turn.** `growth_interval = 5`: closer to the line, and many more ×.

# %% [markdown] zh
# **看到了什么。** 起点太高，每跳过一次更新就减半。之后是锯齿：连续 20 次没出事就翻倍；梯度变大时，又退下来几级。
# 每个 × 都赔上一个批，所以通常的间隔是 2000；这里取 20，是为了让锯齿看得见。
#
# **拧一拧。** `growth_interval = 5`：贴得更紧，× 也多得多。

# %% [markdown] en
# ## 5 · Who swallows small updates?
#
# A weight of 1, and a thousand updates of −0.0001. They add up to −0.1.
#
# **Predict.** Where does the weight end in bf16? And if bf16 is only what the model sees, while the optimizer moves
# a float32 master?

# %% [markdown] zh
# ## 5 · 谁吞掉了小更新？
#
# 权重是 1，更新一千次，每次 −0.0001，加起来是 −0.1。
#
# **先猜。** 在 bf16 里，权重最后停在哪里？如果模型看到的是 bf16，而优化器更新的是 float32 主权重呢？

# %%
lr, start, steps = 1e-4, 1.0, 1000  # three knobs; lr is the size of an update


def path_of(dtype, with_masters):
    """The weight that the model computes with, after each update; the gradient is always 1."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, start)
    optimizer, path = torch.optim.SGD(layer.parameters(), lr=lr), []
    masters = MasterWeights(layer, dtype) if with_masters else None
    if masters is None:
        layer.to(dtype)
    else:
        masters.attach(optimizer)
    for _ in range(steps):
        layer.weight.grad = torch.ones_like(layer.weight)
        if masters is not None:
            masters.copy_grads_to_masters()
        optimizer.step()
        optimizer.zero_grad()
        if masters is not None:
            masters.copy_masters_to_model()
        path.append(layer.weight.item())
    return path


with experiment():
    MasterWeights = my_masters()
    fig, ax = plt.subplots(figsize=(7, 3))
    cases = {
        "float32": (torch.float32, False),
        "bf16 alone": (torch.bfloat16, False),
        "bf16 + master": (torch.bfloat16, True),
        "fp16 + master": (torch.float16, True),
    }
    for name, (dtype, with_masters) in cases.items():
        path = path_of(dtype, with_masters)
        ax.plot(path, label=name)
        print(f"{name:14} {path[-1]:.4f}")
    ax.set(xlabel="update", ylabel="weight")
    ax.legend(loc="lower left")

# %% [markdown] en
# **What you saw.** Alone, bf16 never leaves 1: below 1 its next number is 0.996, and each update on its own is
# rounded back. With a master the small updates add up in float32, and the model's weight follows in stairs.
#
# **Turn.** From which `lr` on does bf16 alone move? Half a gap is enough: about 0.002.

# %% [markdown] zh
# **看到了什么。** 单用 bf16，权重一直停在 1：1 往下的下一个数是 0.996，每次更新单独来看都被舍入回去了。
# 有了主权重，小更新先在 float32 里攒起来，模型的权重再一级一级地跟着下台阶。
#
# **拧一拧。** `lr` 从多大开始，单用 bf16 也会动？半个空隙就够：大约 0.002。

# %% [markdown] en
# ## 6 · Clip before or after unscaling?
#
# A gradient of length 5, to be clipped to 1. So the step should be 1 long, whatever the scale.
#
# **Predict.** Somebody forgets `unscale_` and clips the scaled gradient. How long is the step at a scale of 65536?

# %% [markdown] zh
# ## 6 · 先裁剪，还是先还原？
#
# 梯度长 5，要裁剪到 1。所以不管缩放因子是多少，这一步都应该长 1。
#
# **先猜。** 有人忘了 `unscale_`，直接裁剪放大过的梯度。缩放因子是 65536 时，这一步有多长？

# %%
max_norm = 1.0  # a knob


def step_length(scale, unscale_first):
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))  # the loss ‖w‖²/2 has the gradient w
    optimizer, scaler = torch.optim.SGD([weight], lr=1.0), LossScaler(init_scale=scale)
    scaler.scale((weight**2).sum() / 2).backward()
    if unscale_first:
        scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_([weight], max_norm)
    scaler.step(optimizer)
    return float((weight.detach() - torch.tensor([3.0, 4.0])).norm())


with experiment():
    LossScaler = my_scaler("7.1 7.2")
    scales = [2.0**exponent for exponent in range(0, 21, 2)]
    fig, ax = plt.subplots(figsize=(7, 2.6))
    for name, first in {"unscale_, then clip": True, "clip alone": False}.items():
        lengths = [step_length(scale, first) for scale in scales]
        ax.plot(scales, lengths, marker="o", ms=4, label=name)
        print(f"{name:20} at 2^16: {lengths[8]:.2g}")
    ax.set(xlabel="scale", ylabel="length of the step", yscale="log")
    ax.set_xscale("log", base=2)
    ax.legend(loc="lower left")

# %% [markdown] en
# **What you saw.** 1.5·10⁻⁵ instead of 1. The clip saw a norm of 327 680, cut it down to 1, and then the scaler
# divided by 65536 as usual. The training does not crash; it merely stands still, and nobody knows why.

# %% [markdown] zh
# **看到了什么。** 是 1.5·10⁻⁵，而不是 1。裁剪看到的范数是 327 680，于是裁到 1；接着缩放器照常再除以 65536。
# 训练不会崩，只是原地踏步，而谁也不知道为什么。

# %% [markdown] en
# ## 7 · What is saved, in bytes, and does it still learn?
#
# The training loop of the lesson in three precisions: every tensor weighed, and the loss drawn.
#
# **Predict.** Do weights, masters, gradients and moments together become smaller, stay, or grow? What shrinks?

# %% [markdown] zh
# ## 7 · 到底省了多少字节？还学得动吗？
#
# 用本课的训练循环跑三种精度：把每个张量都称一遍，再画出损失。
#
# **先猜。** 权重、主权重、梯度、动量加在一起，是变小、不变还是变大？真正变小的是什么？

# %%
batch_rows, updates = 8, 25  # two knobs


def loss_of(model, batch):
    return token_loss(model(batch["input_ids"]), batch["labels"])


with experiment():
    TrainerFromScratch = mine("07", "trainer.TrainerFromScratch", needs="7.1 7.2 7.3 7.5 7.6 7.7")
    measure_bytes = mine("07", "precision.measure_bytes", needs="7.5 7.6")
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
    bottom = [0.0] * 3
    sizes, kinds = {}, ("weights", "masters", "gradients", "moments", "activations")
    for precision in DTYPES:
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        options = {"precision": precision, "max_grad_norm": 1.0}
        trainer, losses = TrainerFromScratch(model, optimizer, [], **options), []
        for batch in make_batches(updates, batch_rows):
            loss_sum, num_tokens = trainer.train_step([batch])
            losses.append(float(loss_sum) / num_tokens)
        left.plot(losses, label=precision)
        loss_of(model, batch).backward()  # gradients wait for the next step
        if trainer.masters is not None:
            trainer.masters.copy_grads_to_masters()
        forward = partial(loss_of, model, batch)
        sizes[precision] = measure_bytes(model, optimizer, forward)
        print(
            f"{precision}  " + "  ".join(f"{kind} {sizes[precision][kind] / 2**20:.2f}" for kind in kinds),
            "MiB",
        )
    for kind in kinds:
        heights = [sizes[precision][kind] / 2**20 for precision in DTYPES]
        right.bar(list(DTYPES), heights, 0.6, bottom=bottom, label=kind)
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    left.set(xlabel="update", ylabel="loss")
    left.legend()
    right.set(ylabel="MiB", ylim=(0, 1.7 * max(bottom)))
    right.legend(ncols=2, loc="upper right")

# %% [markdown] en
# **What you saw.** The three losses fall together. The weights have become *more*: a 16-bit copy and a 32-bit master.
# Only the activations shrink, and not to one half, because norms and loss stay in float32. With a larger batch they
# are nearly everything; that is where mixed precision saves memory.
#
# **Turn.** `batch_rows = 1`: the saving is gone. (Time is not shown: what 16 bits gain in speed depends on the
# machine.)

# %% [markdown] zh
# **看到了什么。** 三条损失一起下降。权重反而变*多*了：一份 16 位的，一份 32 位主权重。变小的只有激活值，
# 而且没减到一半，因为归一化层和损失留在 float32。批大一些，激活值就几乎是全部；混合精度省内存，省的是这里。
#
# **拧一拧。** `batch_rows = 1`：省下的就没了。（这里不画时间：16 位能快多少，要看机器。）
