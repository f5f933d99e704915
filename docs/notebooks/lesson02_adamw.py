"""Notebook of lesson 02: what each part of AdamW does.

Build it: python -m course notebooks build 02      How to write one: course/notebook.py
"""

# %% [markdown] en
# # Lesson 02 · What each part of AdamW does
#
# Six experiments: the path of AdamW, its first steps, `eps`, the decay, and what one bad gradient does to it.
# Make your prediction before you run a cell. Then turn the knobs at its top.
#
# Where your tasks in [optimizer.py](optimizer.py) are written, the cells run on *your* code; elsewhere on
# `torch.optim.AdamW`, and the line above the picture says so. Edit, save, and run a cell again. [The
# lesson](README.md)
# %% [markdown] zh
# # 第 02 课 · AdamW 的每一部分起什么作用
#
# 六个实验：AdamW 走的路、最初几步、`eps`、权重衰减，以及一个坏梯度会带来什么。先猜结果，再运行，
# 然后拧一拧单元开头的旋钮。
#
# [optimizer.py](optimizer.py) 里写好的任务用*你的*代码运行，没写的用 `torch.optim.AdamW` 代替，
# 图上方那一行会说明是哪一种。改完代码保存，再运行一次单元即可。[本课正文](README_zh.md)

# %%
import matplotlib.pyplot as plt
import torch

from course.notebook import GREY, experiment, mine


def my_adamw():
    """Your AdamWFromScratch where its tasks are written, else torch's."""
    needs = "2.1 2.2 2.3 2.4 2.5"
    return mine("02", "optimizer.AdamWFromScratch", needs=needs, reference=torch.optim.AdamW)


def moves(optimizer_class, gradients, **settings):
    """How far a weight moves at each step, in units of lr, when these are its gradients."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = optimizer_class([weight], lr=1.0, weight_decay=0.0, **settings)
    seen = []
    for gradient in gradients:
        before = weight.item()
        weight.grad = torch.tensor([float(gradient)])
        optimizer.step()
        seen.append(before - weight.item())
    return seen


# %% [markdown] en
# ## 1 · The same valley, straight and turned
#
# The valley of lesson 01, 25 times steeper across than along. On the right it is turned by 45 degrees.
#
# **Question.** AdamW gives each coordinate a step size of its own. On which side does that help more?
# %% [markdown] zh
# ## 1 · 同一个山谷，摆正和斜放
#
# 还是第 01 课的山谷，横向比纵向陡 25 倍。右边那个转了 45 度。
#
# **问题。** AdamW 给每个坐标一个自己的步长。它在哪一边帮助更大？

# %%
lr, steps = 0.4, 40

with experiment():
    AdamW = my_adamw()
    fig, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True)
    for ax, angle in zip(axes, (0.0, 45.0), strict=True):
        turn = torch.tensor(angle).deg2rad()
        axis = torch.stack([torch.stack([turn.cos(), turn.sin()]), torch.stack([-turn.sin(), turn.cos()])])

        def valley(point, axis=axis):
            along, across = (point @ axis.T).unbind(-1)
            return 0.5 * (along**2 + 25 * across**2)

        grid = torch.stack(torch.meshgrid(*[torch.linspace(-9, 9, 90)] * 2, indexing="xy"), -1)
        ax.contour(*grid.unbind(-1), valley(grid).sqrt(), levels=8, colors=GREY, alpha=0.5, linewidths=0.7)
        for name, optimizer_class, settings in (
            ("SGD, momentum", torch.optim.SGD, {"lr": 0.02, "momentum": 0.8}),
            ("AdamW", AdamW, {"lr": lr, "weight_decay": 0.0}),
        ):
            point = torch.nn.Parameter(torch.tensor([-8.0, 2.0]) @ axis)
            optimizer = optimizer_class([point], **settings)
            path = [point.detach().clone()]
            for _ in range(steps):
                optimizer.zero_grad()
                valley(point).backward()
                optimizer.step()
                path.append(point.detach().clone())
            ax.plot(*torch.stack(path).T, marker="o", markersize=3, label=f"{name}: {valley(path[-1]):.2g}")
        ax.set(xlim=(-9, 5), ylim=(-7, 7), title=f"turned by {angle:g}°")
        ax.legend(loc="upper right", title=f"loss after {steps} steps")

# %% [markdown] en
# SGD walks the same way in both pictures, only turned, and ends at the same loss of 0.011. It does not know where
# the axes are.
#
# AdamW looks at every coordinate by itself. On the left the steep coordinate gets small steps and the flat one
# large steps, and the path is smooth. On the right both coordinates are equally steep. There is nothing to tell
# apart, and it ends at 2.5 instead of 0.69.
#
# So AdamW is no cure for narrow valleys. Where it is strong, experiments 3 and 6 show.
#
# **Turn it.** Give `lr` the values 0.1 and 1.0.
# %% [markdown] zh
# 两张图里 SGD 走的路一样，只是转了个方向，最后的损失都是 0.011。它不知道坐标轴在哪里。
#
# AdamW 把每个坐标分开看。左边，陡的坐标步子小，平的坐标步子大，路线很平滑。右边，两个坐标一样陡，没什么可区分的，
# 最后停在 2.5 而不是 0.69。
#
# 所以狭长的山谷，AdamW 也治不了。它强在哪里，看实验 3 和 6。
#
# **拧一拧。** 把 `lr` 改成 0.1 和 1.0 试试。

# %% [markdown] en
# ## 2 · The first twenty steps
#
# Both averages begin at zero, and the correction makes up for it. Without the correction a step would be
# $m/\sqrt v$ with what the optimizer has in its state; we compute that beside it.
#
# **Question.** The gradient is 1 at every step, so a good step is 1 lr. How large is the first one without the
# correction? And the tenth?
# %% [markdown] zh
# ## 2 · 最初二十步
#
# 两个平均都从零开始，由修正来补偿。没有修正，一步就是用优化器状态里的值算出的 $m/\sqrt v$；我们把它一起画出来。
#
# **问题。** 每一步梯度都是 1，所以合适的一步是 1 个 lr。没有修正时第一步有多大？第十步呢？

# %%
betas, noise, steps = (0.9, 0.999), 0.0, 20

with experiment():
    AdamW = my_adamw()
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = AdamW([weight], lr=1.0, betas=betas, weight_decay=0.0)
    corrected, raw = [], []
    for _ in range(steps):
        before = weight.item()
        weight.grad = 1 + noise * torch.randn(1)
        optimizer.step()
        corrected.append(before - weight.item())
        state = optimizer.state[weight]
        raw.append((state["exp_avg"] / state["exp_avg_sq"].sqrt()).item())
    fig, ax = plt.subplots()
    ax.plot(range(1, steps + 1), corrected, marker="o", markersize=3, label="with the correction")
    ax.plot(range(1, steps + 1), raw, marker="o", markersize=3, label="without")
    ax.set(xlabel="step", ylabel="size of the step / lr", ylim=(0, None), xticks=range(1, steps + 1, 2))
    ax.legend()

# %% [markdown] en
# 3.16 lr at the first step, and more than 6 lr from the sixth on. $m$ forgets after about ten steps and is soon
# full; $v$ needs a thousand and stays far too small, and it stands in the denominator.
#
# With the correction every step is 1 lr.
#
# **Turn it.** Try `betas = (0.9, 0.9)`, then `noise = 3.0`: with noise, the corrected steps are small and have
# both signs. The gradients do not agree, and AdamW does not trust them.
# %% [markdown] zh
# 第一步 3.16 个 lr，从第六步起超过 6 个 lr。$m$ 的记忆大约十步，很快就满了；$v$ 要一千步，一直小得多，
# 而它在分母上。
#
# 有了修正，每一步都是 1 个 lr。
#
# **拧一拧。** 试试 `betas = (0.9, 0.9)`，再试 `noise = 3.0`：有噪声时，修正后的步子又小又时正时负。梯度意见不一，
# AdamW 就不信它们。

# %% [markdown] en
# ## 3 · Multiply the loss by a thousand
#
# **Question.** Somebody sums the loss over a batch instead of averaging it, or scales it by $10^{-6}$. What
# becomes of the first 30 steps of SGD, and of AdamW's? And what has `eps` to do with it?
# %% [markdown] zh
# ## 3 · 把损失乘以一千
#
# **问题。** 有人把一批的损失求和而不是求平均，或者给它乘了 $10^{-6}$。SGD 的前 30 步会怎样？AdamW 呢？
# 这和 `eps` 又有什么关系？

# %%
eps_values, steps = (1e-8, 1e-4), 30

with experiment():
    AdamW = my_adamw()
    scales = [10.0**power for power in range(-9, 5)]
    fig, ax = plt.subplots()
    runs = [
        (f"AdamW, eps {eps:g}", AdamW, {"lr": 0.05, "eps": eps, "weight_decay": 0.0}) for eps in eps_values
    ]
    for name, optimizer_class, settings in [*runs, ("SGD", torch.optim.SGD, {"lr": 0.05})]:
        distances = []
        for scale in scales:
            weight = torch.nn.Parameter(torch.tensor([1.0]))
            optimizer = optimizer_class([weight], **settings)
            for _ in range(steps):
                optimizer.zero_grad()
                (scale * 0.5 * weight**2).sum().backward()
                optimizer.step()
            distances.append(weight.abs().clamp(1e-3, 1e3).item())
        ax.loglog(scales, distances, marker="o", markersize=3, label=name)
    ax.axhline(1, color=GREY, linewidth=0.8)
    ax.set(
        xlabel="factor on the loss", ylabel=f"distance to the minimum\nafter {steps} steps", ylim=(1e-3, 1e3)
    )
    ax.legend(loc="upper left")

# %% [markdown] en
# SGD works for factors of 1 and 10 and nowhere else. Below, it stands still; at 100 it explodes.
#
# AdamW does not care over ten powers of ten: the factor stands in $m$ and in $\sqrt v$, and cancels. It stops
# where the gradient gets as small as `eps`, because then the denominator is `eps` alone. With 1e-4 that happens
# ten thousand times earlier.
#
# Gradients of 1e-7 are nothing unusual in a large model. Whoever raises `eps` to calm a run down may be switching
# off the layers whose gradients are small.
# %% [markdown] zh
# SGD 只在因子为 1 和 10 时管用，别处都不行：再小就站着不动，到 100 就炸了。
#
# AdamW 横跨十个数量级都无所谓：这个因子在 $m$ 里有，在 $\sqrt v$ 里也有，正好约掉。
# 梯度小到和 `eps` 差不多时它才停下，因为那时分母里只剩 `eps`。取 1e-4，就会早一万倍停下。
#
# 在大模型里，1e-7 的梯度并不稀奇。有人为了让训练平稳而调大 `eps`，很可能就关掉了那些梯度小的层。

# %% [markdown] en
# ## 4 · L2 in the gradient, or decoupled
#
# Eight hundred weights begin at 1. Their gradients are pure noise, with a size between 0.001 and 1000: there is
# nothing to learn, only the decay pulls.
#
# **Question.** After 300 steps, which weights have shrunk, if the decay is added to the gradient? And if it is
# decoupled?
# %% [markdown] zh
# ## 4 · 梯度里的 L2，还是解耦的衰减
#
# 八百个权重都从 1 出发。它们的梯度是纯噪声，大小从 0.001 到 1000 不等：没有可学的东西，只有衰减在拉。
#
# **问题。** 走 300 步之后，如果衰减加在梯度里，哪些权重缩小了？如果是解耦的呢？

# %%
lr, weight_decay, steps = 0.01, 0.3, 300

with experiment():
    AdamW = my_adamw()
    size = torch.logspace(-3, 3, 800)
    fig, ax = plt.subplots()
    for name, in_gradient in (("L2 in the gradient", True), ("decoupled", False)):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.ones(800))
        optimizer = AdamW([weight], lr=lr, weight_decay=0.0 if in_gradient else weight_decay)
        for _ in range(steps):
            weight.grad = size * torch.randn(800)
            if in_gradient:
                weight.grad += weight_decay * weight.detach()
            optimizer.step()
        ax.semilogx(size, weight.detach(), ".", markersize=3, label=name)
    ax.axhline((1 - lr * weight_decay) ** steps, color=GREY, linewidth=0.8)
    ax.set(xlabel="size of the gradient's noise", ylabel="weight")
    ax.legend(markerscale=3)

# %% [markdown] en
# Decoupled, every weight follows the same line: it is multiplied by $1 - lr\cdot\lambda$ at each step, and 0.41
# of it is left. The scatter around the line is what the noise did.
#
# With L2, the decay is divided by $\sqrt v$ like everything in the gradient. On the left, where the decay is
# larger than the noise, it counts as a full vote of 1 lr a step, and the weight is soon 0. On the right nothing
# is left of it: the weights stay at 1.
#
# In a network the weights on the right are those with large gradients, the ones that a decay is meant for.
# %% [markdown] zh
# 解耦时，所有权重都跟着同一条线走：每步乘以 $1 - lr\cdot\lambda$，最后剩 0.41。线两边的散布是噪声造成的。
#
# 用 L2 时，衰减和梯度里的一切一样，要除以 $\sqrt v$。左边，衰减比噪声大，它就算满满的一票，每步走 1 个 lr，
# 权重很快变成 0。右边，衰减什么都不剩：权重停在 1。
#
# 在网络里，右边正是那些梯度大的权重，也就是最该被衰减的那些。

# %% [markdown] en
# ## 5 · One bad gradient
#
# The gradient is 1, except at step 100: there it is 100. A broken batch, say.
#
# **Question.** How large is the step at 100? And for how long does the optimizer suffer from it, with
# $\beta_2 = 0.999$ and with 0.95?
# %% [markdown] zh
# ## 5 · 一个坏梯度
#
# 梯度一直是 1，只有第 100 步是 100。比如那一批数据坏了。
#
# **问题。** 第 100 步走多远？之后优化器要受它影响多久？$\beta_2 = 0.999$ 时怎样，0.95 时又怎样？

# %%
spike, steps = 100.0, 400

with experiment():
    AdamW = my_adamw()
    gradients = [spike if step == 100 else 1.0 for step in range(1, steps + 1)]
    fig, ax = plt.subplots()
    for beta2 in (0.999, 0.99, 0.95):
        sizes = moves(AdamW, gradients, betas=(0.9, beta2))
        ax.plot(range(1, steps + 1), sizes, label=f"β2 = {beta2}, largest step {max(sizes):.2g} lr")
    ax.axvline(100, color=GREY, linewidth=0.8)
    ax.set(xlabel="step", ylabel="size of the step / lr")
    ax.legend()

# %% [markdown] en
# The step at 100 is hardly larger than any other, 1.1 lr at most: the bad gradient stands in $m$ and in $\sqrt v$
# alike. SGD would have made a step a hundred times as long.
#
# The bill comes later. $v$ holds the square, 10 000, and forgets it slowly. All following steps are divided by
# its root. With 0.95 the steps are back after 200, with 0.999 it takes thousands.
#
# That is one reason why large language models, GPT-3 and Llama among them, were trained with $\beta_2 = 0.95$.
# The other cure is clipping, in lesson 06.
# %% [markdown] zh
# 第 100 步几乎不比别的步子大，最多 1.1 个 lr：坏梯度在 $m$ 里有，在 $\sqrt v$ 里也有。换成 SGD，
# 这一步会长一百倍。
#
# 账单在后面。$v$ 里存的是平方，10 000，而且忘得慢，之后的每一步都要除以它的平方根。取 0.95，两百步后步子恢复；
# 取 0.999，要几千步。
#
# GPT-3、Llama 等大语言模型训练时取 $\beta_2 = 0.95$，这是原因之一。另一种办法是裁剪，见第 06 课。

# %% [markdown] en
# ## 6 · How exactly must the learning rate be hit?
#
# A small network learns two spirals, from one input that is 30 times larger than the other. Nobody has normalized
# them.
#
# **Question.** Over which range of rates does each optimizer bring the loss down?
# %% [markdown] zh
# ## 6 · 学习率要取得多准？
#
# 一个小网络学习两条螺线，两个输入中有一个比另一个大 30 倍，没有人做归一化。
#
# **问题。** 两种优化器各在多大的学习率范围内能把损失降下来？

# %%
scale, steps = 30.0, 150


def final_loss(optimizer_class, lr, **settings):
    """The loss of the network after its training; 2 where it is larger, or no number."""
    torch.manual_seed(1)
    layers = [torch.nn.Linear(2, 40), torch.nn.ReLU(), torch.nn.Linear(40, 40), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(40, 2))
    optimizer = optimizer_class(model.parameters(), lr=lr, **settings)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(points), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return min(loss.item(), 2.0) if loss.isfinite() else 2.0


with experiment():
    AdamW = my_adamw()
    angle = torch.linspace(0.5, 2.5 * torch.pi, 120)
    arm = torch.stack([angle.cos(), angle.sin()], 1) * (angle / 2).unsqueeze(1)
    points = torch.cat([arm, -arm]) * torch.tensor([1.0, scale])
    labels = torch.arange(2).repeat_interleave(120)
    rates = torch.logspace(-5, 0, 11).tolist()
    fig, ax = plt.subplots()
    ax.semilogx(rates, [final_loss(AdamW, lr) for lr in rates], marker="o", markersize=3, label="AdamW")
    losses = [final_loss(torch.optim.SGD, lr, momentum=0.9) for lr in rates]
    ax.semilogx(rates, losses, marker="o", markersize=3, label="SGD, momentum 0.9")
    ax.set(xlabel="learning rate", ylabel=f"loss after {steps} steps", ylim=(0, 2))
    ax.legend(loc="upper left")

# %% [markdown] en
# AdamW learns at every rate between 0.003 and 0.1. SGD learns at none: the rate that suits the large input is too
# small for the other one.
#
# This is what AdamW is good at: parameters whose gradients differ in size, as those of embeddings, norms and
# matrices in a transformer do.
#
# **Turn it.** With `scale = 1.0`, SGD has its range too, from 0.1 to 0.3. Feed a network well, and the choice of
# the optimizer matters less.
# %% [markdown] zh
# AdamW 在 0.003 到 0.1 之间的学习率下都能学。SGD 一个都不行：适合大输入的学习率，对另一个输入来说太小。
#
# 这才是 AdamW 的长处：各个参数的梯度大小不一，Transformer 里的嵌入、归一化和矩阵就是这样。
#
# **拧一拧。** 设 `scale = 1.0`，SGD 也有了自己的范围，从 0.1 到 0.3。数据喂得好，选哪个优化器就没那么要紧。
