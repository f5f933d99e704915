"""Lesson 06 in pictures. `python -m course notebooks build 06` writes the notebooks from this file."""

# %% [markdown] en
# # Lesson 06 in pictures · Gradient accumulation and clipping
#
# Six experiments with what you write in [gradients.py](gradients.py) and [trainer.py](trainer.py). Each asks a
# question: guess first, then run the cell, then turn the knobs at its top and run it again.
#
# Where your tasks are written, the cells run on *your* code; elsewhere on a reference, and the line above the picture
# says which. Edit, save, and run a cell again: nothing needs a restart. [The lesson](README.md)

# %% [markdown] zh
# # 第 06 课图解 · 梯度累积与梯度裁剪
#
# 六个实验，用的是你在 [gradients.py](gradients.py) 和 [trainer.py](trainer.py) 里写的代码。每个实验先提一个问题：
# 先猜，再运行单元，然后拧一拧最上面的旋钮，再跑一遍。
#
# 写好的任务用*你的*代码运行，没写的用参考实现代替，图上方那一行会说明是哪一种。
# 改完代码保存，再运行一次单元即可，不用重启。[本课正文](README_zh.md)

# %%
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

from course.notebook import GREY, experiment, mine
from training.sampler import windows as windows_of_training


def mean_loss(model, batch):
    """The mean over the targets of one batch, as torch gives it; 0 where there is none."""
    logits, labels = model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten()
    return F.cross_entropy(logits, labels) if (labels != -100).any() else logits.sum() * 0


def large_batch(model, window):
    """What all others are measured against: the window in one piece."""
    mean_loss(model, {key: torch.cat([batch[key] for batch in window]) for key in window[0]}).backward()


def my_accumulate():
    """Your accumulate; it leaves the gradient of a window in `.grad`."""
    return mine("06", "gradients.accumulate", needs="6.5", reference=large_batch)


# %% [markdown] en
# ## 1 · How many votes has a token?
#
# Four micro-batches make one update. They have 32, 2, 0 and 10 targets. In one large batch each of the 44 tokens
# would weigh 1/44. The popular loop takes the mean of each micro-batch, divides by K and adds up.
#
# **Predict.** In which micro-batch does a token then weigh most? How many times as much as it should?
#
# The model below has one row of weights for each micro-batch. So the gradient itself tells what a token weighed.

# %% [markdown] zh
# ## 1 · 一个 token 有几票？
#
# 四个微批组成一次更新，目标数分别是 32、2、0、10。放在一个大批里，44 个 token 各占 1/44。
# 流行的写法是：每个微批先取平均，除以 K，再加起来。
#
# **先猜。** 这样一来，哪个微批里的 token 分量最重？是应有分量的几倍？
#
# 下面的模型给每个微批单独留了一行权重，所以看梯度就能读出一个 token 到底占了多少分量。

# %%
counts = [32, 2, 0, 10]  # a knob: the targets of each micro-batch


def window_of(counts):
    """Micro-batch i holds only token i; its first counts[i] labels are targets."""
    longest = max(counts)
    labels = [torch.tensor([[3] * n + [-100] * (longest - n)]) for n in counts]
    return [{"input_ids": torch.full((1, longest), i), "labels": label} for i, label in enumerate(labels)]


def votes(counts, backward):
    """The weight that one token of each micro-batch had in the gradient."""
    table = nn.Embedding(len(counts), 8)
    nn.init.zeros_(table.weight)
    backward(table, window_of(counts))
    one_token = (torch.full((8,), 1 / 8) - F.one_hot(torch.tensor(3), 8)).norm()
    return [
        float(row.norm() / one_token) / n if n else 0.0
        for row, n in zip(table.weight.grad, counts, strict=True)
    ]


def mean_of_means(model, window):
    for batch in window:
        (mean_loss(model, batch) / len(window)).backward()


def sum_of_means(model, window):
    for batch in window:
        mean_loss(model, batch).backward()


with experiment():
    accumulate = my_accumulate()
    fig, ax = plt.subplots(figsize=(7, 2.8))
    for i, rule in enumerate([accumulate, mean_of_means, sum_of_means]):
        bars = votes(counts, rule)
        print(f"{['accumulate', 'mean of means', 'sum of means'][i]:14}", *(f"{bar:6.3f}" for bar in bars))
        places = [place + 0.27 * (i - 1) for place in range(len(counts))]
        ax.bar(places, bars, 0.25, label=["accumulate", "mean of means", "sum of means"][i])
    ax.axhline(1 / sum(counts), color=GREY, ls=":", lw=1, label="1 / all targets")
    ax.set(
        xticks=range(len(counts)), xticklabels=[f"{n} targets" for n in counts], ylabel="weight of a token"
    )
    ax.legend()

# %% [markdown] en
# **What you saw.** `accumulate` gives the same height everywhere. In the mean of means, a token of the micro-batch
# with 2 targets has 0.125 instead of 0.023: five and a half times its vote. Those in the long one have a third of
# theirs. A micro-batch without targets takes a share all the same: it is one of the four that are divided by.
#
# **Turn.** Find `counts` for which the mean of means is right.

# %% [markdown] zh
# **看到了什么。** `accumulate` 的柱子一样高。在“平均值的平均”里，只有 2 个目标的微批，每个 token 占 0.125，
# 本该是 0.023：五倍半的票。长微批里的 token 只剩三分之一的票。没有目标的微批也照样占一份，因为除数 4 里有它。
#
# **拧一拧。** 找一组 `counts`，让“平均值的平均”碰巧正确。

# %% [markdown] en
# ## 2 · Which micro-batches make an update together?
#
# Ten micro-batches, K = 4. Two rules are often printed: update when `step % K == 0`, or when `(step + 1) % K == 0`.
#
# **Predict.** How many updates does each rule make, and which micro-batches never count?

# %% [markdown] zh
# ## 2 · 哪些微批一起组成一次更新？
#
# 十个微批，K = 4。常见的规则有两条：`step % K == 0` 时更新，或 `(step + 1) % K == 0` 时更新。
#
# **先猜。** 两条规则各更新几次？哪些微批白算了？

# %%
num_batches, K = 10, 4  # two knobs


def windows_by_rule(fires):
    """What a counter rule makes of the same loader, and the micro-batches that are left at its end."""
    done, waiting = [], []
    for step in range(num_batches):
        waiting.append(step)
        if fires(step):
            done.append(waiting)
            waiting = []
    return done, waiting


with experiment():
    windows = mine("06", "gradients.windows", needs="6.4", reference=windows_of_training)
    loader = [{"number": torch.tensor(i)} for i in range(num_batches)]
    rows = {
        "windows()": ([[int(batch["number"]) for batch in window] for window in windows(loader, K)], []),
        "step % K == 0": windows_by_rule(lambda step: step % K == 0),
        "(step + 1) % K == 0": windows_by_rule(lambda step: (step + 1) % K == 0),
    }
    fig, ax = plt.subplots(figsize=(7, 1.8))
    for y, (name, (done, lost)) in enumerate(rows.items()):
        for update, window in enumerate(done):
            ax.barh(y, len(window) - 0.08, left=window[0] + 0.04, height=0.7, color=f"C{update % 5}")
            ax.text(window[0] + len(window) / 2, y, str(update + 1), ha="center", va="center", color="w")
        for step in lost:
            ax.barh(y, 0.92, left=step + 0.04, height=0.7, fill=False, ls=":", edgecolor=GREY)
            ax.text(step + 0.5, y, "lost", ha="center", va="center", color=GREY)
        print(f"{name:20} {len(done)} updates, lost: {lost}")
    ax.set(
        yticks=range(3),
        yticklabels=rows,
        xticks=[i + 0.5 for i in range(num_batches)],
        xlabel="micro-batch; inside the bars: its update",
    )
    ax.set_xticklabels(range(num_batches))
    ax.invert_yaxis()
    ax.grid(False)

# %% [markdown] en
# **What you saw.** `step % K == 0` fires at the very first micro-batch, and every later window is shifted by three.
# `(step + 1) % K == 0` begins well and never closes the last window. Either gradients are thrown away, or they leak
# into the next epoch.
#
# **Turn.** With `num_batches = 12` one of the two rules is right. Which, and why is that not good enough?

# %% [markdown] zh
# **看到了什么。** `step % K == 0` 在第一个微批就触发，之后每个窗口都错开三格。`(step + 1) % K == 0` 开头没问题，
# 但最后一个窗口永远不关：那些梯度要么白算，要么漏进下一个 epoch。
#
# **拧一拧。** 令 `num_batches = 12`，其中一条规则就对了。是哪条？为什么这还不够？

# %% [markdown] en
# ## 3 · How far off does the mean of means point?
#
# Two micro-batches. The first has 32 targets, the second fewer. We compare with the gradient of the large batch: the
# angle between the two, in degrees.
#
# **Predict.** With 16 targets in the second one: 1°, 8° or 20°? And with a single one?

# %% [markdown] zh
# ## 3 · “平均值的平均”偏了多少度？
#
# 两个微批。第一个有 32 个目标，第二个少一些。拿大批的梯度来比：两个梯度之间的夹角，单位是度。
#
# **先猜。** 第二个微批有 16 个目标时，偏 1°、8° 还是 20°？只有一个目标呢？

# %%
full = 32  # a knob: the targets of the first micro-batch, at most 32
VOCAB, LENGTH = 16, 8


def make_model():
    """Embedding → linear: each token predicts the next one from itself alone."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(VOCAB, 12), nn.Linear(12, VOCAB))


def counting_batch(rng, num_targets=4 * LENGTH):
    """Four rows that count upwards from somewhere; only the first `num_targets` labels are targets."""
    start = torch.randint(VOCAB - 1, (4, 1), generator=rng)
    ids = (start + torch.arange(LENGTH + 1)) % (VOCAB - 1)  # the last token of the vocabulary stays unused
    labels = ids[:, 1:].flatten().clone()
    labels[num_targets:] = -100
    return {"input_ids": ids[:, :-1], "labels": labels.view(4, LENGTH)}


def gradient_of(rule, window):
    """All gradients as one vector, divided by its length: a direction."""
    model = make_model()
    rule(model, window)
    flat = torch.cat([param.grad.flatten() for param in model.parameters()]).double()
    return flat / flat.norm()


with experiment():
    accumulate = my_accumulate()
    fig, ax = plt.subplots(figsize=(7, 2.8))
    for name, rule in {"accumulate": accumulate, "mean of means": mean_of_means}.items():
        angles = []
        for n in range(1, 33):
            rng = torch.Generator().manual_seed(1)
            window = [counting_batch(rng, full), counting_batch(rng, n)]
            apart = (gradient_of(rule, window) - gradient_of(large_batch, window)).norm()
            angles.append(math.degrees(2 * math.asin(min(1.0, float(apart) / 2))))
        ax.plot(range(1, 33), angles, label=name)
        print(f"{name:14}", *(f"{n}: {angles[n - 1]:.0f}°" for n in (1, 4, 16, 32)), sep="  ")
    ax.set(xlabel="targets in the second micro-batch", ylabel="degrees off")
    ax.legend()

# %% [markdown] en
# **What you saw.** The more unequal the counts, the further off. Fine-tuning data are like that: answers of three
# tokens beside answers of three hundred. `accumulate` stays at 0 up to rounding, whatever the counts are.

# %% [markdown] zh
# **看到了什么。** 目标数越悬殊，偏得越远。微调数据正是如此：三个 token 的回答挨着三百个 token 的回答。
# 不管目标数怎么分布，`accumulate` 始终是 0，只差舍入误差。

# %% [markdown] en
# ## 4 · Why does nobody notice?
#
# One bug, two optimizers. The bug: nobody divides, so the gradient is the sum over all 128 tokens of the window.
#
# **Predict.** Which optimizer's curve changes: that of SGD, of AdamW, or both?

# %% [markdown] zh
# ## 4 · 为什么没人发现？
#
# 同一个错误，两种优化器。错误是：什么都没除，于是梯度成了窗口里 128 个 token 之和。
#
# **先猜。** 谁的曲线会变：SGD、AdamW，还是两个都变？

# %%
micro_batches, lr_of_sgd = 4, 0.5  # two knobs


def sum_of_tokens(model, window):
    for batch in window:
        (mean_loss(model, batch) * int((batch["labels"] != -100).sum())).backward()


def losses_of(rule, optimizer_class, updates=50, **options):
    """Train on windows of equal counts; the loss of each window before its update."""
    rng, model = torch.Generator().manual_seed(3), make_model()
    optimizer, losses = optimizer_class(model.parameters(), **options), []
    for _ in range(updates):
        window = [counting_batch(rng) for _ in range(micro_batches)]
        with torch.no_grad():
            losses.append(float(sum(mean_loss(model, batch) for batch in window)) / len(window))
        rule(model, window)
        optimizer.step()
        optimizer.zero_grad()
    return losses


with experiment():
    accumulate = my_accumulate()
    fig, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True)
    cases = {"SGD": (torch.optim.SGD, {"lr": lr_of_sgd}), "AdamW": (torch.optim.AdamW, {"lr": 0.02})}
    for ax, (name, (optimizer_class, options)) in zip(axes, cases.items(), strict=True):
        for label, rule in {"accumulate": accumulate, "not divided": sum_of_tokens}.items():
            losses = losses_of(rule, optimizer_class, **options)
            ax.plot(losses, label=label)
            print(f"{name:6} {label:12}", *(f"{losses[step]:9.2g}" for step in (0, 1, 20, 49)))
        ax.set(xlabel=f"update, {name}", yscale="log", ylim=(0.005, 200))
    axes[0].set_ylabel("loss")
    axes[0].legend()

# %% [markdown] en
# **What you saw.** SGD is gone after one update; the two curves of AdamW are one. AdamW divides the gradient by its
# own size, so a constant factor falls out. Only `eps`, and a clipping limit, would feel it. So test accumulation with
# SGD, or look at `.grad`.

# %% [markdown] zh
# **看到了什么。** SGD 一步之后就飞了；AdamW 的两条曲线重合成一条。AdamW 用梯度自身的大小去除梯度，常数倍就约掉了，
# 只有 `eps` 和裁剪上限还感觉得到。所以测试梯度累积要用 SGD，或者直接看 `.grad`。

# %% [markdown] en
# ## 5 · What does clipping do to a direction?
#
# Each dot is a gradient of two numbers that belong to two parameters. Three ways to keep it below c.
#
# **Predict.** What shape do the long gradients end on: a circle, a square, a cross? Which way keeps the direction?

# %% [markdown] zh
# ## 5 · 裁剪对方向做了什么？
#
# 每个点是一个梯度，两个分量分属两个参数。有三种办法把它限制在 c 以内。
#
# **先猜。** 太长的梯度最后落在什么形状上：圆、方框，还是十字？哪种办法保住了方向？

# %%
c, p = 1.0, 2.0  # two knobs: the limit, and the norm (try 1 and math.inf)


def clip_each(params, max_norm):
    """The mistake: a norm for each parameter by itself."""
    for param in params:
        torch.nn.utils.clip_grad_norm_([param], max_norm)


def clipped(gradient, clip):
    params = [nn.Parameter(torch.zeros(1)) for _ in gradient]
    for param, value in zip(params, gradient, strict=True):
        param.grad = value.reshape(1).clone()
    clip(params)
    return torch.cat([param.grad for param in params])


with experiment():
    by_norm = mine("06", "gradients.clip_grad_norm_", needs="6.1 6.2", reference=nn.utils.clip_grad_norm_)
    by_value = mine("06", "gradients.clip_grad_value_", needs="6.3", reference=nn.utils.clip_grad_value_)
    cloud = 1.2 * torch.randn(150, 2)
    cloud[:3] = torch.tensor([[2.6, 0.8], [-0.7, 2.4], [-2.0, -1.6]])  # these three get an arrow
    ways = {
        "clip_grad_norm_": lambda params: by_norm(params, c, norm_type=p),
        "clip_grad_value_": lambda params: by_value(params, c),
        "each by itself": lambda params: clip_each(params, c),
    }
    fig, axes = plt.subplots(1, 3, figsize=(8, 2.9), sharey=True)
    for ax, (name, clip) in zip(axes, ways.items(), strict=True):
        after = torch.stack([clipped(gradient, clip) for gradient in cloud])
        ax.scatter(*cloud.T, s=5, color=GREY, alpha=0.5)
        ax.scatter(*after.T, s=7, color="C1")
        for start, end in zip(cloud[:3], after[:3], strict=True):
            ax.annotate("", end.tolist(), start.tolist(), arrowprops={"arrowstyle": "->", "color": "C0"})
        ax.set(xlabel=name, xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
        angle = torch.rad2deg(torch.acos(F.cosine_similarity(cloud, after).clamp(-1, 1))).max()
        print(
            f"{name:17} turned by at most {float(angle):4.1f}°, longest {float(after.norm(dim=1).max()):.2f}"
        )

# %% [markdown] en
# **What you saw.** The norm makes a circle, and each arrow points straight to the middle: one factor for all numbers.
# Value clipping makes a square and pushes everything towards its corners. With a norm of its own for each parameter
# the same happens here, because each parameter is a single number.
#
# Short gradients did not move at all. With `p = math.inf` the circle becomes a square, and the direction still stays.

# %% [markdown] zh
# **看到了什么。** 按范数裁剪得到一个圆，每支箭头都笔直指向中心：所有分量乘同一个系数。按值裁剪得到一个方框，
# 一切都被推向四角。每个参数各算各的范数，在这里也是同样的结果，因为每个参数恰好只有一个数。
#
# 短梯度一点没动。令 `p = math.inf`，圆就变成方框，而方向依然不变。

# %% [markdown] en
# ## 6 · One bad window
#
# A real training loop, sixteen updates. In one window comes a token whose embedding is 200 times too large.
#
# **Predict.** The bad window comes once. For how many updates will the loss of the run without clipping suffer?

# %% [markdown] zh
# ## 6 · 一个坏窗口
#
# 真正的训练循环，十六次更新。其中一个窗口里出现了一个 token，它的嵌入大了 200 倍。
#
# **先猜。** 坏窗口只来一次。不裁剪的那次训练，损失要难受多少次更新？

# %%
max_grad_norm, bad_window, updates = 1.0, 8, 16  # three knobs


def run_with(limit):
    rng, model = torch.Generator().manual_seed(2), make_model()
    with torch.no_grad():
        model[0].weight[VOCAB - 1] *= 200
    loader = [counting_batch(rng) for _ in range(2 * updates)]
    loader[2 * bad_window - 1]["input_ids"][0] = VOCAB - 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.9)
    options = {"log_interval": 1, "accumulation_steps": 2, "max_grad_norm": limit}
    trainer = TrainerFromScratch(model, optimizer, loader, **options)
    return [row for row in trainer.train() if "train_loss" in row]


with experiment():
    TrainerFromScratch = mine("06", "trainer.TrainerFromScratch", needs="6.1 6.2 6.4 6.5 6.6 6.7")
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(7, 3.6), sharex=True)
    for limit in (None, max_grad_norm):
        rows = run_with(limit)
        steps = [row["global_step"] for row in rows]
        label = "not clipped" if limit is None else f"max_grad_norm = {limit}"
        top.plot(steps, [row["train_loss"] for row in rows], label=label)
        bottom.plot(steps, [row["grad_norm"] for row in rows], label=label)
        print(f"{label:20}", *(f"{rows[i]['train_loss']:6.2f}" for i in range(bad_window - 2, updates, 2)))
    bottom.axhline(max_grad_norm, color=GREY, ls=":", lw=1)
    top.set(ylabel="loss", yscale="log")
    bottom.set(ylabel="grad_norm", xlabel="update", yscale="log")
    top.legend(loc="upper left")

# %% [markdown] en
# **What you saw.** Both meet the same spike: clipping does not change the loss of the bad window itself, nor its
# norm, which is measured before the clip. But what it leaves behind differs. Without clipping, momentum carries the
# huge gradient on, and the loss is bad for the rest of the run. With it, one update was of the wrong direction, and
# of normal length.
#
# **Turn.** Try `max_grad_norm = 100.0`: a limit that is never reached is none.

# %% [markdown] zh
# **看到了什么。** 两次训练撞上的尖峰一样高：裁剪不改变坏窗口本身的损失，也不改变它的范数，因为范数是裁剪之前量的。
# 差别在后面。不裁剪时，动量带着那个巨大的梯度继续走，损失一直到最后都很糟。裁剪时，只有一步走错了方向，
# 步长还是正常的。
#
# **拧一拧。** 试试 `max_grad_norm = 100.0`：永远碰不到的上限，等于没有。
