"""Notebook of lesson 04: learning-rate schedules, and what goes wrong around them.

Build it: python -m course notebooks build 04      How to write one: course/notebook.py
"""

# %% [markdown] en
# # Lesson 04 · The learning rate over time
#
# Six experiments: the shapes of five schedules, what decay and warmup are good for, and three ways to get a
# different schedule than the one that was asked for. Make your prediction before you run a cell. Then turn the
# knobs at its top.
#
# Where your tasks in [factors.py](factors.py), [scheduler.py](scheduler.py) and [updates.py](updates.py) are
# written, the cells run on *your* code; elsewhere on a reference, and the line above the picture says so. Edit,
# save, and run a cell again. [The lesson](README.md)
# %% [markdown] zh
# # 第 04 课 · 学习率随时间的变化
#
# 六个实验：五种调度的形状，衰减和预热有什么用，以及三种“实际的调度不是你要的那个”的情形。先猜结果，再运行，
# 然后拧一拧单元开头的旋钮。
#
# [factors.py](factors.py)、
# [scheduler.py](scheduler.py) 和 [updates.py](updates.py) 里写好的任务用*你的*代码运行，没写的用参考实现代替，
# 图上方那一行会说明是哪一种。改完代码保存，再运行一次单元即可。[本课正文](README_zh.md)

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

from course.notebook import GREY, experiment, mine


def an_optimizer(lr=1.0):
    """An optimizer that a scheduler can write to; it holds one weight that nobody uses."""
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def rates(scheduler, updates):
    """The learning rate of each of the next updates."""
    seen = []
    for _ in range(updates):
        seen.append(scheduler.get_last_lr()[0])
        scheduler.step()
    return seen


# %% [markdown] en
# ## 1 · Five shapes
#
# **Question.** All begin with `lr=1.0` in the optimizer. Which of them use that rate at update 0?
# %% [markdown] zh
# ## 1 · 五种形状
#
# **问题。** 优化器里都写着 `lr=1.0`。哪几种在第 0 次更新时真的用这个学习率？

# %%
steps = 100

with experiment():
    schedules = {
        "StepDecay": ("4.1 4.5", {"step_size": 25, "gamma": 0.5}),
        "WarmupCosine": ("4.2 4.5", {"warmup_steps": 10, "total_steps": steps, "min_ratio": 0.1}),
        "OneCycle": ("4.2 4.3 4.5", {"total_steps": steps}),
        "CosineWarmRestarts": ("4.2 4.4 4.5", {"T_0": 14, "T_mult": 2}),
    }
    fig, axes = plt.subplots(1, 4, figsize=(8, 2), sharey=True)
    for ax, (name, (needs, settings)) in zip(axes, schedules.items(), strict=True):
        scheduler = mine("04", f"scheduler.{name}", needs=needs)(an_optimizer(), **settings)
        ax.plot(rates(scheduler, steps), color="C0")
        ax.plot(0, 1, "o", color="C1", markersize=4)
        ax.set(title=name, xlabel="update")
    axes[0].set_ylabel("learning rate")

# %% [markdown] en
# `StepDecay` and `CosineWarmRestarts` do. `WarmupCosine` and `OneCycle` begin lower, and so they have to write
# the rate *before* the first update. A scheduler that only acts in its first `step()` lets update 0 run at the
# full rate.
#
# The restarts come at 14, 42 and 98: each cycle is twice as long as the one before.
#
# **Turn it.** Set `steps = 140`. What does each of them do after its end?
# %% [markdown] zh
# `StepDecay` 和 `CosineWarmRestarts`。`WarmupCosine` 和 `OneCycle` 从更低的地方开始，
# 所以必须在第一次更新*之前*就写好学习率。如果调度器到第一次 `step()` 才动手，第 0 次更新就会用满学习率。
#
# 重启发生在 14、42 和 98：每个周期的长度是前一个的两倍。
#
# **拧一拧。** 设 `steps = 140`。各种调度走完之后会做什么？

# %% [markdown] en
# ## 2 · Why decay at all?
#
# Gradients of small batches are noisy. Here a hundred weights walk down a bowl with a noisy gradient; the curve
# is their mean loss.
#
# **Question.** With a constant rate, where does the loss stop falling? And does a rate that falls win early, or
# late?
# %% [markdown] zh
# ## 2 · 为什么要衰减？
#
# 小批量的梯度带噪声。这里有一百个权重，沿着带噪声的梯度走下一个碗，曲线是它们的平均损失。
#
# **问题。** 学习率不变时，损失会停在哪里？逐渐变小的学习率，是前期占优还是后期占优？

# %%
noise, steps = 1.0, 400

with experiment():
    WarmupCosine = mine("04", "scheduler.WarmupCosine", needs="4.2 4.5")
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8))
    for name, lr, decays in (
        ("constant 0.3", 0.3, False),
        ("constant 0.01", 0.01, False),
        ("0.3, cosine to 0", 0.3, True),
    ):
        torch.manual_seed(0)
        weights = nn.Parameter(5 * torch.ones(100))
        optimizer = torch.optim.SGD([weights], lr=lr)
        scheduler = WarmupCosine(optimizer, warmup_steps=0, total_steps=steps) if decays else None
        losses, used = [], []
        for _ in range(steps):
            weights.grad = weights.detach() + noise * torch.randn(100)
            used.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            losses.append(0.5 * (weights.detach() ** 2).mean().item())
            if scheduler:
                scheduler.step()
        left.plot(used, label=name)
        right.semilogy(losses, label=f"{name}: {losses[-1]:.2g}")
    left.set(xlabel="update", ylabel="learning rate")
    right.set(xlabel="update", ylabel="loss")
    right.legend()

# %% [markdown] en
# The constant 0.3 arrives after ten updates, and then shakes: each step takes in as much new noise as it removes
# old. Its loss hovers near 0.09 for ever. The constant 0.01 shakes a tenth as much, but it is on the way for 400
# updates.
#
# The cosine has both. It walks fast as long as there is a way to go, and averages the noise out at the end:
# 0.0038, and most of that was won in the second half.
#
# **Turn it.** Set `noise = 0.0`. Is decay still worth anything?
# %% [markdown] zh
# 恒定的 0.3 十次更新就到了，然后一直抖：每一步带进来的新噪声，和它消掉的旧噪声一样多，损失永远在 0.09 附近徘徊。
# 恒定的 0.01 抖动小一个数量级，但 400 次更新全花在路上。
#
# 余弦调度两样都占：还有路要走时走得快，最后把噪声平均掉，得到 0.0038，其中大半是后半程挣来的。
#
# **拧一拧。** 设 `noise = 0.0`。衰减还有用吗？

# %% [markdown] en
# ## 3 · What warmup prevents
#
# A deep residual network, AdamW, a rate that is a little too high. The left picture shows by how much an update
# changes the network's output.
#
# **Question.** Without warmup, which update is the most dangerous one?
# %% [markdown] zh
# ## 3 · 预热防住了什么
#
# 一个深的残差网络，AdamW，稍微偏大的学习率。左图是每次更新让网络输出改变了多少。
#
# **问题。** 没有预热时，最危险的是哪一次更新？

# %%
lr, warmup_steps, steps = 0.02, 30, 60


class Deep(nn.Module):
    """Sixteen residual layers for points in the plane."""

    def __init__(self, width=32, depth=16):
        super().__init__()
        self.first, self.last = nn.Linear(2, width), nn.Linear(width, 2)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = x + torch.relu(layer(x)) / 4
        return self.last(x)


with experiment():
    WarmupCosine = mine("04", "scheduler.WarmupCosine", needs="4.2 4.5")
    angle = torch.linspace(0.5, 2 * torch.pi, 100)
    arm = torch.stack([angle.cos(), angle.sin()], 1) * (angle / 6).unsqueeze(1)
    points, labels = torch.cat([arm, -arm]), torch.arange(2).repeat_interleave(100)
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8))
    for warmup in (0, warmup_steps):
        torch.manual_seed(0)
        model = Deep()
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        scheduler = WarmupCosine(optimizer, warmup_steps=warmup, total_steps=steps)
        losses, changes = [], []
        for _ in range(steps):
            logits = model(points)
            loss = nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
            with torch.no_grad():
                changes.append((model(points) - logits).square().mean().sqrt().item())
        left.semilogy(changes, label=f"warmup {warmup}")
        right.semilogy(losses, label=f"warmup {warmup}: {losses[-1]:.2g} at the end")
    left.set(xlabel="update", ylabel="change of the output")
    right.set(xlabel="update", ylabel="loss")
    right.legend()

# %% [markdown] en
# The first one. AdamW moves every weight by a full lr, on the word of a single batch, and sixteen layers moving
# together change the output by nearly 2. The loss jumps to 1.4, twice the 0.69 of a coin toss.
#
# With warmup the first change is 0.06. The larger ones come later, around update 25, when both averages have
# something to say, and the loss goes down by them: 0.0005 at the end, against 0.17.
#
# Given 150 updates, this network recovers. A large one may not: its norms and attention can end up where the
# gradient is nearly 0.
#
# **Turn it.** Set `lr = 0.05`. How high does the loss climb without warmup?
# %% [markdown] zh
# 第一次。AdamW 仅凭一批数据，就让每个权重都走满一个 lr，十六层一起动，输出改变了将近 2。损失跳到 1.4，
# 是抛硬币水平 0.69 的两倍。
#
# 有预热时，第一次改变是 0.06。更大的改变在后面，第 25 次更新前后，那时两个平均值都有了根据，损失也随之下降：
# 最后是 0.0005，没有预热的是 0.17。
#
# 给它 150 次更新，这个网络能恢复。大网络就未必：归一化和注意力可能落到梯度几乎为 0 的地方。
#
# **拧一拧。** 设 `lr = 0.05`。没有预热时，损失会冲到多高？

# %% [markdown] en
# ## 4 · Updates are not micro-batches
#
# An epoch has 320 micro-batches, and an update is made of four. Somebody steps the scheduler after each
# micro-batch; somebody else gives it the number of micro-batches as `total_steps`.
#
# **Question.** Which rates does each of them use?
# %% [markdown] zh
# ## 4 · 更新次数不是 micro-batch 数
#
# 一个 epoch 有 320 个 micro-batch，每 4 个做一次更新。有人每个 micro-batch 都让调度走一步；
# 另有人把 micro-batch 的个数当成 `total_steps`。
#
# **问题。** 他们实际用的学习率各是什么样？

# %%
micro_batches, accumulation_steps = 320, 4

with experiment():
    WarmupCosine = mine("04", "scheduler.WarmupCosine", needs="4.2 4.5")
    total_updates = mine("04", "updates.total_updates", needs="4.7")
    updates = total_updates(micro_batches, accumulation_steps, epochs=1)
    fig, ax = plt.subplots()
    for name, total_steps, moves in (
        ("right", updates, 1),
        ("stepped per micro-batch", updates, accumulation_steps),
        ("total_steps in micro-batches", micro_batches, 1),
    ):
        scheduler = WarmupCosine(an_optimizer(), warmup_steps=8, total_steps=total_steps)
        used = []
        for _ in range(updates):
            used.append(scheduler.get_last_lr()[0])
            for _ in range(moves):
                scheduler.step()
        ax.plot(used, label=name)
    ax.set(xlabel="update", ylabel="learning rate used")
    ax.legend(loc="center right")

# %% [markdown] en
# Stepped per micro-batch, the schedule is over after a quarter of the run: three quarters are trained at a rate
# of 0. With `total_steps` in micro-batches, the rate never comes down, and the gain of experiment 2 is lost.
#
# Both runs look healthy in the log, unless somebody draws this curve. Draw it.
#
# **Turn it.** Set `micro_batches = 321`. How many updates are there now, and why?
# %% [markdown] zh
# 按 micro-batch 步进，调度在四分之一处就走完了：后四分之三都在用学习率 0 训练。`total_steps` 用 micro-batch 数，
# 学习率一直降不下来，实验 2 里的好处就没了。
#
# 两种情况的日志看起来都很健康，除非有人把这条曲线画出来。一定要画。
#
# **拧一拧。** 设 `micro_batches = 321`。现在有多少次更新？为什么？

# %% [markdown] en
# ## 5 · After a restart
#
# A run of 100 updates stops at update 60 and goes on in a new process. The optimizer's state is loaded; with the
# scheduler, three people do three things.
#
# **Question.** What does the curve look like if the scheduler's state is forgotten? And if, besides, its base
# rate is what the optimizer happens to hold?
# %% [markdown] zh
# ## 5 · 重启之后
#
# 一个 100 次更新的训练停在第 60 次，在新进程里继续。优化器的状态都加载了；至于调度器，三个人有三种做法。
#
# **问题。** 忘了恢复调度器，曲线会是什么样？如果起始学习率还取自优化器当时的值呢？

# %%
stop, steps = 60, 100

with experiment():
    WarmupCosine = mine("04", "scheduler.WarmupCosine", needs="4.2 4.5")
    settings = {"warmup_steps": 10, "total_steps": steps}
    fig, ax = plt.subplots()
    for name in ("scheduler restored", "scheduler forgotten", "and initial_lr lost"):
        optimizer = an_optimizer()
        scheduler = WarmupCosine(optimizer, **settings)
        used = rates(scheduler, stop)
        state = optimizer.state_dict()
        if name == "and initial_lr lost":
            del state["param_groups"][0]["initial_lr"]
        resumed = an_optimizer()
        resumed.load_state_dict(state)
        again = WarmupCosine(resumed, **settings)
        if name == "scheduler restored":
            again.load_state_dict(scheduler.state_dict())
        ax.plot(used + rates(again, steps - stop), label=name)
    ax.axvline(stop, color=GREY, linewidth=0.8)
    ax.set(xlabel="update", ylabel="learning rate used")
    ax.legend(loc="lower left")

# %% [markdown] en
# Restored, the curve goes on as if nothing had happened. Forgotten, the run warms up again and ends at a high
# rate.
#
# The third one is the nastiest. The optimizer came back with the *scheduled* rate of update 60, and the scheduler
# took it for the base. With every restart the peak gets smaller.
#
# That is what `initial_lr` in the group is for. It says where the rate began, and travels with the optimizer.
# %% [markdown] zh
# 恢复了的，曲线像什么都没发生一样继续走。忘了的，会重新预热一遍，结束时学习率还很高。
#
# 第三种最阴险。优化器带回来的是第 60 次更新*调度过*的学习率，调度器却把它当成了起点。每重启一次，峰值就更小一点。
#
# 组里的 `initial_lr` 就是为此准备的：它记着学习率从哪里开始，并且跟着优化器走。

# %% [markdown] en
# ## 6 · Watching a plateau
#
# `ReduceOnPlateau` knows nothing about time; it looks at a metric. Here is a validation loss that falls in three
# stages, with a little noise on it.
#
# **Question.** With a patience of 5, does it wait for the plateaus? And with a patience of 1?
# %% [markdown] zh
# ## 6 · 盯着平台期
#
# `ReduceOnPlateau` 不管时间，只看指标。这里是一条分三段下降的验证损失，带一点噪声。
#
# **问题。** 耐心取 5，它会等到平台期吗？取 1 呢？

# %%
patiences, threshold, noise = (5, 1), 1e-4, 0.02

with experiment():
    ReduceOnPlateau = mine("04", "scheduler.ReduceOnPlateau", needs="4.5 4.6")
    fall = (-torch.arange(30) / 5).exp()
    stages = [to + (begin - to) * fall for begin, to in ((2.0, 1.0), (1.0, 0.6), (0.6, 0.4))]
    metric = torch.cat(stages) + noise * torch.randn(90)
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8))
    left.plot(metric, color=GREY)
    for patience in patiences:
        scheduler = ReduceOnPlateau(an_optimizer(), factor=0.5, patience=patience, threshold=threshold)
        used = []
        for value in metric.tolist():
            scheduler.step(value)
            used.append(scheduler.get_last_lr()[0])
        right.semilogy(used, label=f"patience {patience}: {scheduler.num_reductions} reductions", base=2)
    left.set(xlabel="evaluation", ylabel="validation loss")
    right.set(xlabel="evaluation", ylabel="learning rate")
    right.legend(loc="lower left")

# %% [markdown] en
# With 5, the four reductions all fall into plateaus. With 1 there are 21: two unlucky evaluations in a row are no
# plateau, and noise has them all the time. At the end the rate is a two-millionth, and nothing is learned any
# more.
#
# Patience has to be longer than the noise, and shorter than you are willing to wait.
#
# **Turn it.** Set `noise = 0.0`. Then give `threshold` the value 0.05: what counts as an improvement now?
# %% [markdown] zh
# 取 5，四次降低都落在平台期里。取 1，降了 21 次：连着两次运气不好不算平台期，可只要有噪声，这种事随时都有。
# 最后学习率只剩两百万分之一，什么都学不到了。
#
# 耐心要比噪声长，又不能长到你等不起。
#
# **拧一拧。** 设 `noise = 0.0`。再把 `threshold` 设成 0.05：这时什么才算改善？
