"""Notebook of lesson 01: SGD seen from above.

Build it: python -m course notebooks build 01      How to write one: course/notebook.py
"""

# %% [markdown] en
# # Lesson 01 · SGD, seen from above
#
# Six experiments with the optimizer that you write in [optimizer.py](optimizer.py). Each has a question, a cell
# with knobs at its top, and what was seen. Make your prediction before you run the cell. Then turn the knobs.
#
# Where your tasks are written, the cells run on *your* code; elsewhere on `torch.optim.SGD`, and the line above
# the picture says so. Edit, save, and run a cell again: there is no need to restart anything. [The
# lesson](README.md)
# %% [markdown] zh
# # 第 01 课 · 从上面看 SGD
#
# 六个实验，用的是你在 [optimizer.py](optimizer.py) 里写的优化器。每个实验有一个问题、一个把旋钮放在最上面的单元，
# 以及看到了什么。先猜结果，再运行，然后拧一拧旋钮。
#
# 写好的任务用*你的*代码运行，没写的用 `torch.optim.SGD` 代替，图上方那一行会说明是哪一种。改完代码保存，
# 再运行一次单元即可，不用重启内核。[本课正文](README_zh.md)

# %%
import matplotlib.pyplot as plt
import torch

from course.notebook import GREY, experiment, mine


def my_sgd(needs):
    """Your SGDFromScratch where these tasks are written, else torch's."""
    return mine("01", "optimizer.SGDFromScratch", needs=needs, reference=torch.optim.SGD)


STEEPNESS = torch.tensor([1.0, 25.0])  # curvature along the valley, and across it


def valley(point):
    return 0.5 * (STEEPNESS * point**2).sum(-1)


def walk(optimizer_class, steps, **settings):
    """The points that an optimizer visits on its way down from (−9, 2); shape (steps + 1, 2)."""
    point = torch.nn.Parameter(torch.tensor([-9.0, 2.0]))
    optimizer = optimizer_class([point], **settings)
    path = [point.detach().clone()]
    for _ in range(steps):
        optimizer.zero_grad()
        valley(point).backward()
        optimizer.step()
        path.append(point.detach().clone())
    return torch.stack(path)


# %% [markdown] en
# ## 1 · A ball in a narrow valley
#
# The valley is 25 times steeper across than along. The lowest point is the cross on the right.
#
# **Question.** All three walkers have the same learning rate. Who bounces, who overshoots, and who is nearest
# after 30 steps?
# %% [markdown] zh
# ## 1 · 狭长山谷里的小球
#
# 这个山谷横向比纵向陡 25 倍。最低点是右边的叉。
#
# **问题。** 三个人的学习率相同。谁会来回弹？谁会冲过头？走完 30 步，谁离终点最近？

# %%
lr, momentum, steps = 0.05, 0.8, 30

with experiment():
    SGD = my_sgd("1.1 1.2 1.3 1.4 1.6")
    xs, ys = torch.meshgrid(torch.linspace(-10, 4, 120), torch.linspace(-3.2, 3.2, 80), indexing="xy")
    heights = valley(torch.stack([xs, ys], -1)).sqrt()
    fig, ax = plt.subplots(figsize=(8, 3.2))
    ax.contour(xs, ys, heights, levels=9, colors=GREY, alpha=0.5, linewidths=0.7)
    for name, settings in {
        "plain": {},
        f"momentum {momentum}": {"momentum": momentum},
        f"Nesterov {momentum}": {"momentum": momentum, "nesterov": True},
    }.items():
        path = walk(SGD, steps, lr=lr, **settings)
        label = f"{name}: loss {valley(path[-1]):.2g} after {steps} steps"
        ax.plot(*path.T, marker="o", markersize=3, label=label)
    ax.plot(0, 0, "x", color=GREY, markersize=9)
    ax.set(xlim=(-10, 4), ylim=(-3.2, 3.2), xlabel="along the valley", ylabel="across")
    ax.legend(loc="upper right")

# %% [markdown] en
# The plain walker is soon on the valley's floor, and creeps: along the floor, each step is only 5 % of the way
# that is left.
#
# Momentum adds the steps up. Along the valley they all have one sign, so it runs. Across, it swings wider than
# the plain walker, because it carries its speed up the walls. It overshoots the cross and comes back, and is
# nearer all the same: 0.11 against 1.9.
#
# Nesterov adds the momentum of the step that is about to come. Where that would overshoot, it brakes one step
# earlier.
#
# **Turn it.** Looking ahead is not free: at `lr = 0.06` one of the three leaves the picture. Which one? And how
# many are left at `lr = 0.081`?
# %% [markdown] zh
# 普通 SGD 很快落到谷底，然后慢慢挪：沿谷底走，每一步只走完剩余路程的 5 %。
#
# 动量把步子加起来。沿山谷方向，步子全都同号，所以跑得快。横向它比普通 SGD 晃得更开，因为它带着速度冲上谷壁。
# 它冲过了叉又回来，尽管如此还是更近：0.11 对 1.9。
#
# Nesterov 加上的是即将走出的那一步的动量。眼看要冲过头时，它早一步刹车。
#
# **拧一拧。** 向前看也有代价：`lr = 0.06` 时，三条路中有一条会飞出画面。是哪一条？`lr = 0.081` 时还剩几条？

# %% [markdown] en
# ## 2 · How large may the learning rate be?
#
# **Question.** Across the valley the curvature is 25. Above which learning rate does the loss grow instead of
# fall? And does momentum make that limit lower, or higher? Many people say lower.
# %% [markdown] zh
# ## 2 · 学习率最大能取多少？
#
# **问题。** 山谷横向的曲率是 25。学习率超过多少，损失会不降反升？动量会让这个上限变低还是变高？很多人猜变低。

# %%
momenta, steps = (0.0, 0.5, 0.9), 60

with experiment():
    SGD = my_sgd("1.1 1.2 1.3 1.4 1.6")
    rates = torch.linspace(0.002, 0.17, 36).tolist()
    fig, ax = plt.subplots()
    for number, momentum in enumerate(momenta):
        losses = [valley(walk(SGD, steps, lr=rate, momentum=momentum)[-1]).item() for rate in rates]
        ax.semilogy(rates, losses, label=f"momentum {momentum}")
        ax.axvline(2 * (1 + momentum) / 25, color=f"C{number}", linewidth=0.8, linestyle=":")
    ax.axhline(valley(torch.tensor([-9.0, 2.0])), color=GREY, linewidth=0.8)
    ax.set(xlabel="learning rate", ylabel=f"loss after {steps} steps", ylim=(1e-12, 1e6))
    ax.legend(loc="lower right")

# %% [markdown] en
# The grey line is the loss at the start. Without momentum, one step multiplies the height across by $1 - 25\eta$.
# Its size stays below 1 only while $\eta < 2/25$.
#
# Momentum *raises* the limit, to $2(1+\mu)/25$ (the thin vertical lines): a step that overshoots is held back by
# the memory of the one before.
#
# The price is on the left. Momentum 0.9 is flat: it forgets slowly, so it goes on swinging whatever the rate is.
# For this valley 0.5 is better.
#
# **Turn it.** Give `steps` the value 200. Which momentum wins now, and at which rate?
# %% [markdown] zh
# 灰线是出发时的损失。没有动量时，每一步都把横向的高度乘以 $1 - 25\eta$，只有 $\eta < 2/25$ 时，
# 它的绝对值才小于 1。
#
# 动量把上限*抬高*到 $2(1+\mu)/25$（细竖线）：冲过头的那一步，会被对上一步的记忆拉住。
#
# 代价在左边。动量 0.9 的曲线是平的：它忘得慢，不管学习率多大都会晃很久。在这个山谷里，0.5 更好。
#
# **拧一拧。** 把 `steps` 改成 200。这回哪个动量赢？在哪个学习率上？

# %% [markdown] en
# ## 3 · What the buffer remembers
#
# **Question.** The gradient is 1 at every step. How large does the buffer become with momentum 0.9? And if the
# gradient is +1, −1, +1, −1 …?
# %% [markdown] zh
# ## 3 · 缓冲记住了什么
#
# **问题。** 如果每一步的梯度都是 1，动量 0.9 的缓冲会涨到多大？如果梯度是 +1、−1、+1、−1……呢？

# %%
momenta, steps = (0.5, 0.8, 0.9), 40


def buffers(optimizer_class, momentum, gradients):
    """The momentum buffer after each of these gradients."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = optimizer_class([weight], lr=0.1, momentum=momentum)
    seen = []
    for gradient in gradients:
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        seen.append(optimizer.state[weight]["momentum_buffer"].item())
    return seen


with experiment():
    SGD = my_sgd("1.1 1.2 1.3 1.6")
    fig, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True)
    for ax, name, gradients in zip(
        axes,
        ("gradient +1, +1, +1 …", "gradient +1, −1, +1 …"),
        ([1.0] * steps, [1.0, -1.0] * (steps // 2)),
        strict=True,
    ):
        for momentum in momenta:
            ax.plot(range(1, steps + 1), buffers(SGD, momentum, gradients), label=f"momentum {momentum}")
        ax.set(xlabel="step", title=name)
    axes[0].set_ylabel("buffer")
    axes[1].legend()

# %% [markdown] en
# A gradient that keeps its sign is worth $1/(1-\mu)$ steps in the end: 2, 5, 10. One that keeps changing it is
# worth about a half.
#
# So "learning rate 0.1 with momentum 0.9" walks like a rate of 1.0 along the floor of a valley. Who switches
# momentum on and keeps the rate has made the rate ten times as large.
#
# The buffer takes about $1/(1-\mu)$ steps to fill. Just as long it takes to notice that the wind has turned.
# %% [markdown] zh
# 一直同号的梯度，最终相当于 $1/(1-\mu)$ 步：2、5、10。一直变号的梯度，大约只相当于半步。
#
# 所以“学习率 0.1、动量 0.9”在谷底走起来，相当于学习率 1.0。打开动量却不改学习率，就等于把学习率放大到十倍。
#
# 缓冲要大约 $1/(1-\mu)$ 步才能充满。风向变了，它也要这么久才察觉。

# %% [markdown] en
# ## 4 · A gradient of zero is not a missing gradient
#
# After step 10 the gradient ends: this layer is not used any more. `zero_grad(set_to_none=False)` leaves zeros
# behind, `set_to_none=True` leaves nothing.
#
# **Question.** Where does the weight go from step 10 on, in the two cases?
# %% [markdown] zh
# ## 4 · 梯度为零，不等于没有梯度
#
# 从第 10 步起不再有梯度：这一层不再被用到。`zero_grad(set_to_none=False)` 留下全零的梯度，
# `set_to_none=True` 什么都不留。
#
# **问题。** 两种情况下，第 10 步之后权重会往哪里走？

# %%
momentum, weight_decay, steps = 0.9, 0.0, 40

with experiment():
    SGD = my_sgd("1.1 1.2 1.3 1.4 1.5 1.6")
    fig, ax = plt.subplots()
    for set_to_none in (False, True):
        weight = torch.nn.Parameter(torch.tensor([1.0]))
        optimizer = SGD([weight], lr=0.01, momentum=momentum, weight_decay=weight_decay)
        values = [1.0]
        for step in range(steps):
            optimizer.zero_grad(set_to_none=set_to_none)
            if step < 10:
                weight.sum().backward()  # the gradient is 1
            optimizer.step()
            values.append(weight.item())
        ax.plot(values, label=f"set_to_none={set_to_none}")
    ax.axvline(10, color=GREY, linewidth=0.8)
    ax.set(xlabel="step", ylabel="weight")
    ax.legend()

# %% [markdown] en
# With zeros, the optimizer still steps: the buffer is full, and the weight coasts on. Without a gradient it is
# passed over and stands still.
#
# Here lies a well-known trap. A layer is frozen in the middle of a run, its gradients are zeros, and yet it
# changes.
#
# **Turn it.** Set `momentum = 0.0` and `weight_decay = 1.0`. A "frozen" weight now shrinks, without any gradient
# at all.
# %% [markdown] zh
# 梯度是零时，优化器照样更新：缓冲还是满的，权重会继续滑行。没有梯度时，它被跳过，原地不动。
#
# 这里有一个常见的坑：训练中途冻结某一层，它的梯度全是零，参数却还在变。
#
# **拧一拧。** 设 `momentum = 0.0`、`weight_decay = 1.0`。“冻结”的权重在没有任何梯度的情况下也会缩小。

# %% [markdown] en
# ## 5 · Weight decay gathers momentum
#
# The gradient is 0 throughout; only the decay $\lambda\theta$ pulls.
#
# **Question.** The learning rate and $\lambda$ are the same in all runs. How much of a weight of 1 is left after
# 60 steps with momentum 0.9, compared with none?
# %% [markdown] zh
# ## 5 · 权重衰减也会积累动量
#
# 梯度一直是 0，只有衰减 $\lambda\theta$ 在拉。
#
# **问题。** 各条曲线的学习率和 $\lambda$ 都相同。一个为 1 的权重，走 60 步之后还剩多少？
# 动量 0.9 和没有动量相比呢？

# %%
lr, weight_decay, steps = 0.1, 0.05, 60

with experiment():
    SGD = my_sgd("1.1 1.2 1.3 1.5 1.6")
    fig, ax = plt.subplots()
    for momentum in (0.0, 0.5, 0.9):
        weight = torch.nn.Parameter(torch.tensor([1.0]))
        optimizer = SGD([weight], lr=lr, momentum=momentum, weight_decay=weight_decay)
        values = [1.0]
        for _ in range(steps):
            weight.grad = torch.zeros(1)
            optimizer.step()
            values.append(weight.item())
        ax.plot(values, label=f"momentum {momentum}: {values[-1]:.2f} left")
    ax.set(xlabel="step", ylabel="weight")
    ax.legend()

# %% [markdown] en
# The decay goes through the buffer like any gradient, so momentum 0.9 makes it ten times as strong: it even
# swings through 0. This is what "coupled" means.
#
# Change the momentum in a config, and you have changed the weight decay. Lesson 02 cuts this tie.
# %% [markdown] zh
# 衰减和梯度一样要经过缓冲，所以动量 0.9 会把它放大到十倍，权重甚至荡过了 0。这就是“耦合”的意思。
#
# 在配置里改了动量，也就改了权重衰减。第 02 课会剪断这根线。

# %% [markdown] en
# ## 6 · A network learns two spirals
#
# Enough of valleys. A network of two hidden layers has to tell two spirals apart.
#
# **Question.** Plain SGD at the same rate does worse than momentum; is it the direction of the steps, or only
# their size? To tell, a third run is plain SGD at ten times the rate.
# %% [markdown] zh
# ## 6 · 让网络学会两条螺线
#
# 山谷看够了。一个有两层隐藏层的网络要把两条螺线分开。
#
# **问题。** 学习率相同时，普通 SGD 不如带动量的。差别在步子的方向，还是只在步子的大小？为了分清，
# 第三条曲线是十倍学习率的普通 SGD。

# %%
lr, momentum, steps = 0.03, 0.9, 400


def spirals(count=120):
    """Points of two spirals (2·count, 2), and to which each belongs."""
    angle = torch.linspace(0.5, 3.2 * torch.pi, count)
    arm = torch.stack([angle.cos(), angle.sin()], 1) * (angle / 10).unsqueeze(1)
    points = torch.cat([arm, -arm]) + 0.01 * torch.randn(2 * count, 2)
    return points, torch.arange(2).repeat_interleave(count)


with experiment():
    SGD = my_sgd("1.1 1.2 1.3 1.4 1.6")
    points, labels = spirals()
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), width_ratios=(3, 2))
    for name, settings in {
        f"lr {lr}": {"lr": lr},
        f"lr {lr}, momentum {momentum}": {"lr": lr, "momentum": momentum},
        f"lr {10 * lr:.1f}": {"lr": 10 * lr},
    }.items():
        torch.manual_seed(1)
        layers = (2, 40), (40, 40), (40, 2)
        model = torch.nn.Sequential(
            *(m for i, o in layers for m in (torch.nn.Linear(i, o), torch.nn.ReLU()))
        )[:-1]
        optimizer = SGD(model.parameters(), **settings)
        losses = []
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(4 * model(points), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        left.plot(losses, label=f"{name}: {losses[-1]:.3f}")
        if "momentum" in settings:
            grid = torch.stack(torch.meshgrid(*[torch.linspace(-1.1, 1.1, 80)] * 2, indexing="xy"), -1)
            side = (4 * model(grid)).softmax(-1)[..., 1].detach()
            right.contourf(grid[..., 0], grid[..., 1], side, levels=6, cmap="RdBu", alpha=0.5)
    right.scatter(*points.T, c=labels, cmap="RdBu", s=8, edgecolors=GREY, linewidths=0.3)
    right.set(xticks=[], yticks=[], title=f"with momentum {momentum}")
    right.grid(False)
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    left.legend()

# %% [markdown] en
# Ten times the rate does catch up with some of it, 0.435 against 0.622. But it begins with a jump that costs a
# hundred steps, and it ends far above the 0.021 of momentum. Size alone does not do it: momentum is large only
# where the gradients agree.
#
# The curve with momentum shakes at step 180. That is the swinging of experiment 1, in some steep direction out of
# two thousand.
#
# **Turn it.** `momentum = 0.99`, or `lr = 0.1`. And if your tasks are all written: this network was trained by
# your own code.
# %% [markdown] zh
# 十倍的学习率确实追回来一些，0.435 对 0.622。但它一开头猛跳一下，赔上一百步，最后也远高于动量的 0.021。
# 光靠步子大不行：动量只在梯度方向一致的地方才大。
#
# 带动量的曲线在第 180 步附近抖了一阵。那就是实验 1 里的摇摆，发生在两千个方向中某个陡峭的方向上。
#
# **拧一拧。** `momentum = 0.99`，或者 `lr = 0.1`。如果任务都写完了：训练这个网络的，就是你自己的代码。
