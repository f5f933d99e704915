"""Lesson 09 in pictures. `python -m course notebooks build 09` writes the notebooks from this file."""

# %% [markdown] en
# # Lesson 09 in pictures · Exact resume
#
# Six experiments with what you write in [rng.py](rng.py), [sampler.py](sampler.py) and
# [checkpoint.py](checkpoint.py). Each asks a question: guess first, then run the cell, then turn the knobs at its
# top.
#
# Where your tasks are written, the cells run on *your* code; elsewhere on a reference, and the line above the picture
# says which. Edit, save, and run a cell again: nothing needs a restart. [The lesson](README.md)

# %% [markdown] zh
# # 第 09 课图解 · 断点续训
#
# 六个实验，用的是你在 [rng.py](rng.py)、[sampler.py](sampler.py) 和 [checkpoint.py](checkpoint.py) 里写的代码。
# 每个实验先提一个问题：先猜，再运行单元，然后拧一拧最上面的旋钮，再跑一遍。
#
# 写好的任务用*你的*代码运行，没写的用参考实现代替，图上方那一行会说明是哪一种。改完代码保存，再运行一次单元即可，
# 不用重启。[本课正文](README_zh.md)

# %%
import math
import random

import matplotlib.pyplot as plt
import numpy as np
import torch

import training.rng as production_rng
import training.sampler as production_sampler
from course.notebook import GREY, experiment, mine


def my_training():
    """The training of run.py, on your capture and restore: 3 epochs of 6 micro-batches, dropout, fp16."""
    return mine("09", "run.Training", needs="9.1 9.2 9.3 9.4 9.5 9.6")


def my_sampler(needs):
    return mine("09", "sampler.ResumableSampler", needs=needs, reference=production_sampler.ResumableSampler)


# %% [markdown] en
# ## 1 · What if one thing is missing from the checkpoint?
#
# A training is interrupted, its state goes into a new one, and that goes on. In each panel one thing was left out of
# the state: it is as in a program that has just been started. Drawn is how far each loss is from that of the
# uninterrupted run.
#
# **Predict.** Which panels begin at 0 and part only later?

# %% [markdown] zh
# ## 1 · 检查点里少了一样东西会怎样？
#
# 训练中断，状态交给一个新的训练，接着跑。每一格少了一样东西：它和刚启动的程序里一样。
# 画的是每个损失与未中断的那次相差多少。
#
# **先猜。** 哪几格开头是 0，过一会儿才分开？

# %%
stop_after = 7  # a knob: the micro-step after which it is interrupted, 1 to 17


def without(*keys):
    """These entries of the state as a fresh program has them."""
    return lambda state, fresh: {**state, **{key: fresh[key] for key in keys}}


def without_moments(state, fresh):
    return {**state, "optimizer_state_dict": {**state["optimizer_state_dict"], "state": {}}}


def without_position(state, fresh):
    return {**state, "sampler_state_dict": {**state["sampler_state_dict"], "position": 0}}


CASES = {
    "nothing": without(),
    "generators": without("rng_state"),
    "position in the data": without_position,
    "gradients that wait": without("gradients"),
    "optimizer's moments": without_moments,
    "loss scaler": without("scaler_state_dict"),
    "scheduler": without("scheduler_state_dict"),
    "all but the weights": without(
        *("optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict", "sampler_state_dict"),
        *("gradients", "rng_state"),
    ),
}

with experiment():
    Training = my_training()
    whole, state, fresh = Training().train(), Training().train(stop_after).capture(), Training().capture()
    fig, axes = plt.subplots(2, 4, figsize=(8, 3.6), sharex=True, sharey=True)
    for ax, (name, leave_out) in zip(axes.flat, CASES.items(), strict=True):
        resumed = Training().restore(leave_out(state, fresh)).train()
        # with its position lost, the resumed run reads some data twice and takes more micro-steps
        pairs = zip(resumed.losses, whole.losses, strict=False)
        apart = [abs(ours - theirs) for ours, theirs in pairs]
        ax.plot(range(1, len(apart) + 1), [max(value, 1e-9) for value in apart], marker="o", ms=3, ls="-")
        ax.axvline(stop_after + 0.5, color=GREY, ls=":")
        ax.set(yscale="log", ylim=(3e-10, 5))
        ax.set_yticks([1e-9, 1e-6, 1e-3, 1], ["0", "1e-6", "1e-3", "1"])
        ax.text(0.5, 1.0, name, transform=ax.transAxes, ha="center", va="bottom")
        first = next((step for step, value in enumerate(apart, 1) if value > 0), None)
        print(f"without {name:21} first other loss: {first}")
    axes[1, 0].set(xlabel="micro-step", ylabel="loss, difference")

# %% [markdown] en
# **What you saw.** Generators and position show at the very next micro-step: another dropout mask, other samples.
# Moments, scheduler, scaler and waiting gradients act only when the next update is made; the first losses are still
# right, and a quick test that compares one loss after the resume sees nothing. After that, every run is another run.
#
# **Turn.** `stop_after = 6`: an update was just made. One panel more is flat. Which?

# %% [markdown] zh
# **看到了什么。** 随机数发生器和数据位置，下一个微批就露馅：dropout 掩码不同，样本也不同。动量、调度器、
# 缩放器和等待中的梯度，要到下一次更新才起作用；开头几个损失还是对的，
# 所以只比较续训后一个损失的快速测试什么也看不出来。在那之后，每一次都成了另一次训练。
#
# **拧一拧。** `stop_after = 6`：刚做完一次更新。又多了一格是平的。是哪一格？

# %% [markdown] en
# ## 2 · And at every other moment?
#
# The same for ten moments, as a table: how far the final weights are from those of the uninterrupted run. "=" means:
# not a bit.
#
# **Predict.** Is there a moment at which several things may be left out without harm?

# %% [markdown] zh
# ## 2 · 换个时刻中断呢？
#
# 同样的实验，换十个时刻，列成一张表：最后的权重与未中断的那次相差多少。“=” 表示一个比特都不差。
#
# **先猜。** 有没有哪个时刻，少掉好几样也无妨？

# %%
stops = range(2, 12)  # a knob

with experiment():
    Training = my_training()
    whole, fresh = Training().train(), Training().capture()
    table = torch.zeros(len(CASES), len(stops))
    for column, stop in enumerate(stops):
        state = Training().train(stop).capture()
        for row, leave_out in enumerate(CASES.values()):
            resumed = Training().restore(leave_out(state, fresh)).train()
            pairs = zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
            table[row, column] = max(float((a - b).detach().abs().max()) for a, b in pairs)
    fig, ax = plt.subplots(figsize=(8, 3))
    shown = table.clamp(min=1e-4).log10().masked_fill(table == 0, math.nan)
    image = ax.imshow(shown, aspect="auto", cmap="viridis", vmin=-3, vmax=0)
    for row, column in (table == 0).nonzero().tolist():
        ax.text(column, row, "=", ha="center", va="center", fontsize=12)
    ax.set_xticks(range(len(stops)), stops)
    ax.set_yticks(range(len(CASES)), CASES)
    ax.set(xlabel="interrupted after micro-step")
    ax.grid(False)
    bar = fig.colorbar(image, ticks=[-3, -2, -1, 0])
    bar.ax.set_yticklabels(["0.001", "0.01", "0.1", "1"])
    for name, row in zip(CASES, table, strict=True):
        print(f"without {name:21}", " ".join("=" if value == 0 else "~" for value in row))

# %% [markdown] en
# **What you saw.** Right after an update (4, 6, 10) no gradient waits, so that row is "=" there. The first update
# overflowed in fp16 and was skipped: until the second one, at 6, there are no moments to lose. At 4 even all but the
# weights may go, since the run then simply begins again. Alone, generators and position are needed always. So a test
# that kills at one convenient moment proves little: kill at all of them.

# %% [markdown] zh
# **看到了什么。** 刚更新完（4、6、10）没有等待的梯度，那一行就是 “=”。第一次更新在 fp16 里溢出，被跳过了，
# 所以到第二次更新（6）之前，根本没有动量可丢。在 4 处，除了权重什么都不要也行，因为那等于从头再来一遍。
# 单独少了随机数发生器或位置，则时刻都不行。所以只在一个方便的时刻杀一次的测试，说明不了什么：要在每个时刻都杀一遍。

# %% [markdown] en
# ## 3 · Is a seed not enough?
#
# Forty numbers from each of three generators. After the line, the run was interrupted and resumed: once by seeding
# again, once with the state that was saved.
#
# **Predict.** What do the numbers after the line look like when it was seeded again?

# %% [markdown] zh
# ## 3 · 有种子还不够吗？
#
# 三个随机数发生器，各抽四十个数。竖线处中断并续训：一次重新设种子，一次恢复保存下来的状态。
#
# **先猜。** 重新设种子的话，竖线之后的数是什么样？

# %%
interrupted_after = 15  # a knob; odd numbers are the hard ones: normal draws come in pairs

DRAWS = {
    "random.gauss": lambda: random.gauss(0, 1),
    "np.random.randn": lambda: float(np.random.randn()),
    "dropout": lambda: float(torch.nn.functional.dropout(torch.ones(1), 0.5)) - 1,
}


def seed_all():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


with experiment():
    get_rng_state = mine("09", "rng.get_rng_state", needs="9.1", reference=production_rng.get_rng_state)
    set_rng_state = mine("09", "rng.set_rng_state", needs="9.2", reference=production_rng.set_rng_state)
    fig, axes = plt.subplots(3, 1, figsize=(8, 3.4), sharex=True)
    for ax, (name, draw) in zip(axes, DRAWS.items(), strict=True):
        seed_all()
        before = [draw() for _ in range(interrupted_after)]
        state = get_rng_state()
        rows = {"never interrupted": [draw() for _ in range(40 - interrupted_after)]}
        seed_all()
        rows["seeded again"] = [draw() for _ in range(40 - interrupted_after)]
        random.random(), np.random.rand(), torch.rand(1)  # as a new process, which has drawn other numbers
        set_rng_state(state)
        rows["state restored"] = [draw() for _ in range(40 - interrupted_after)]
        ax.imshow([before + row for row in rows.values()], cmap="viridis", aspect="auto", vmin=-2, vmax=2)
        ax.set_yticks(range(3), rows)
        ax.axvline(interrupted_after - 0.5, color="C1", lw=2)
        ax.grid(False)
        ax.text(1, 1.02, name, transform=ax.transAxes, ha="right", va="bottom", fontsize=8)
        same = rows["state restored"] == rows["never interrupted"]
        print(f"{name:16} state restored: the same numbers: {same}")
    axes[2].set_xlabel("draw")

# %% [markdown] en
# **What you saw.** A seed takes the generator back to its beginning: after the line, the first fifteen numbers come
# again. A run resumed that way uses the dropout masks of its first steps once more. A state is where the generator
# *is*.

# %% [markdown] zh
# **看到了什么。** 种子把发生器带回起点：竖线之后，开头那十五个数又来了一遍。这样续训，
# 会把最初几步的 dropout 掩码再用一次。状态说的才是发生器*现在*在哪里。

# %% [markdown] en
# ## 4 · Fetched is not consumed
#
# An epoch of 30 samples. The loader is `ahead` samples ahead of the training when the process dies. Three ways to
# count the position that is saved.
#
# **Predict.** Which way loses samples, and which trains some twice?

# %% [markdown] zh
# ## 4 · 取出来不等于用掉
#
# 一个 epoch 有 30 个样本。进程被杀时，loader 比训练多取了 `ahead` 个。保存的位置有三种数法。
#
# **先猜。** 哪种数法会丢样本？哪种会让一些样本训练两遍？

# %%
consumed, ahead = 12, 7  # two knobs

with experiment():
    ResumableSampler = my_sampler("9.3 9.4")
    first = ResumableSampler(30, seed=1)
    first.set_epoch(1)
    trained_before = list(first)[:consumed]
    first.advance(consumed)
    order, state = first.order(), first.state_dict()
    fig, ax = plt.subplots(figsize=(8, 2))
    ways = {"what was consumed": consumed, "what was fetched": consumed + ahead, "none: begin again": 0}
    for y, (name, position) in enumerate(ways.items()):
        second = ResumableSampler(30, seed=1)
        second.load_state_dict({**state, "position": position})
        second.set_epoch(1)
        times = [(trained_before + list(second)).count(sample) for sample in order]
        for place, count in enumerate(times):
            if count:
                early = place < consumed
                color = "C3" if count == 2 else "C0" if early else "C2"
                ax.barh(y, 0.9, left=place - 0.45, height=0.75, color=color)
            ax.text(
                place, y, order[place], ha="center", va="center", fontsize=7, color="w" if count else GREY
            )
        print(f"{name:18} never: {times.count(0):2}   once: {times.count(1):2}   twice: {times.count(2):2}")
    ax.axvline(consumed - 0.5, color="C1", lw=2)
    ax.set_yticks(range(3), ways)
    ax.set(xlabel="place in the epoch; the number is the sample's. Pink: trained twice, empty: never")
    ax.invert_yaxis()
    ax.grid(False)

# %% [markdown] en
# **What you saw.** The seven fetched samples died with the process. Who saves the fetched position never trains on
# them. Who begins the epoch again trains on twelve twice. Neither shows in a loss curve.

# %% [markdown] zh
# **看到了什么。** 多取的七个样本随进程一起没了。保存“取到哪里”的，永远不会再训练它们；从头再来的，
# 有十二个样本训练了两遍。两种错误在损失曲线上都看不出来。

# %% [markdown] en
# ## 5 · Why not seed an epoch with seed + epoch?
#
# Two runs, with seeds 0 and 1, eight epochs each. A cell of the picture compares an epoch of the one with an epoch of
# the other: which share of the places holds the same sample.
#
# **Predict.** On the left, each epoch is shuffled with `seed + epoch`. What pattern do you see?

# %% [markdown] zh
# ## 5 · 为什么不用 seed + epoch 当种子？
#
# 两次训练，种子是 0 和 1，各八个 epoch。每个格子拿一次训练的某个 epoch 与另一次的某个 epoch 相比：
# 有多少位置放着同一个样本。
#
# **先猜。** 左图用 `seed + epoch` 打乱。你会看到什么图案？

# %%
seeds, epochs = (0, 1), 8  # two knobs

with experiment():
    ResumableSampler = my_sampler("9.3 9.4")

    def added(seed, epoch):
        return torch.randperm(100, generator=torch.Generator().manual_seed(seed + epoch))

    def hashed(seed, epoch):
        sampler = ResumableSampler(100, seed=seed)
        sampler.set_epoch(epoch)
        return torch.tensor(sampler.order())

    fig, axes = plt.subplots(1, 2, figsize=(7, 3))
    for ax, order_of in zip(axes, (added, hashed), strict=True):
        orders = [[order_of(seed, epoch) for epoch in range(epochs)] for seed in seeds]
        same = torch.tensor([[float((a == b).double().mean()) for b in orders[1]] for a in orders[0]])
        image = ax.imshow(same, vmin=0, vmax=1, cmap="viridis", origin="lower")
        ax.grid(False)
        ax.set(xlabel=f"epoch, seed {seeds[1]}", ylabel=f"epoch, seed {seeds[0]}")
        ax.text(
            0.5,
            1.02,
            "seed + epoch" if order_of is added else "ResumableSampler",
            transform=ax.transAxes,
            ha="center",
        )
        print(f"{order_of.__name__:6} pairs of equal epochs: {int((same == 1).sum())}")
    fig.colorbar(image, ax=axes, label="share of equal places")

# %% [markdown] en
# **What you saw.** With a sum, epoch 3 of one run is epoch 2 of the other, all the way. Two seeds, and yet hardly an
# independent experiment: whoever averages over seeds averages over the same orders. A hash has no such stripe.

# %% [markdown] zh
# **看到了什么。** 用加法时，一次训练的第 3 个 epoch 就是另一次的第 2 个，一路如此。换了种子，却算不上独立的实验：
# 对种子求平均，平均的是同样的顺序。用哈希就没有这条斜线。

# %% [markdown] en
# ## 6 · Whose noise is it?
#
# A dataset adds noise to each sample when it is fetched. Each row has another number of worker processes; each column
# is a sample; the colour is its noise.
#
# **Predict.** On the left each worker draws from a generator of its own. Is the noise of sample 5 the same in all
# rows?

# %% [markdown] zh
# ## 6 · 这是谁的噪声？
#
# 数据集在取样本时给它加噪声。每一行的 worker 进程数不同；每一列是一个样本；颜色是它的噪声。
#
# **先猜。** 左图里，每个 worker 从自己的发生器抽。样本 5 的噪声在各行都一样吗？

# %%
samples, worker_counts = 24, (1, 2, 3, 4)  # two knobs

with experiment():
    sample_generator = mine("09", "sampler.sample_generator", needs="9.3")

    def by_worker(workers):
        """Samples are dealt out in turn; each worker draws as they come."""
        generators = [torch.Generator().manual_seed(worker) for worker in range(workers)]
        return [float(torch.randn(1, generator=generators[index % workers])) for index in range(samples)]

    def by_sample(workers):
        """Whoever fetches it: the generator belongs to (seed, epoch, index)."""
        return [float(torch.randn(1, generator=sample_generator(1, 0, index))) for index in range(samples)]

    fig, axes = plt.subplots(1, 2, figsize=(8, 1.9), sharey=True)
    for ax, noise in zip(axes, (by_worker, by_sample), strict=True):
        table = [noise(workers) for workers in worker_counts]
        ax.imshow(table, aspect="auto", cmap="viridis", vmin=-2, vmax=2)
        ax.set_yticks(range(len(worker_counts)), worker_counts)
        ax.grid(False)
        ax.set(xlabel=f"sample, noise {noise.__name__.replace('_', ' ')}")
        agree = sum(len({row[index] for row in table}) == 1 for index in range(samples))
        print(f"{noise.__name__:9} the same with any number of workers: {agree} of {samples} samples")
    axes[0].set_ylabel("workers")

# %% [markdown] en
# **What you saw.** On the left the noise hangs on who fetched what before. After a resume there are new workers that
# have drawn nothing, and the state of the old ones died with them. On the right it is a function of (seed, epoch,
# index), so nothing has to be saved.

# %% [markdown] zh
# **看到了什么。** 左图的噪声取决于谁先取了什么。续训之后是一批新的 worker，什么都还没抽过，旧的状态已随进程消失。
# 右图里，噪声是 (seed, epoch, index) 的函数，所以什么也不用保存。
