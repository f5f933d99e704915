"""Notebook of lesson 03: what parameter groups do, and what goes wrong without them.

Build it: python -m course notebooks build 03      How to write one: course/notebook.py
"""

# %% [markdown] en
# # Lesson 03 · Which parameter gets what
#
# Six experiments: norms that decay, layers with rates of their own, a pattern that matches too much, a layer that
# nobody trains, and moments in the wrong hands. Make your prediction before you run a cell. Then turn the knobs
# at its top.
#
# Where your tasks in [optimizer.py](optimizer.py) are written, the cells run on *your* code; elsewhere on a
# reference, and the line above the picture says so. Edit, save, and run a cell again. [The lesson](README.md)
# %% [markdown] zh
# # 第 03 课 · 哪个参数用哪种设置
#
# 六个实验：被衰减的归一化层、各层自己的学习率、匹配过头的模式、没人训练的层，以及张冠李戴的动量。先猜结果，
# 再运行，然后拧一拧单元开头的旋钮。
#
# [optimizer.py](optimizer.py) 里写好的任务用*你的*代码运行，没写的用参考实现代替，图上方那一行会说明是哪一种。
# 改完代码保存，再运行一次单元即可。[本课正文](README_zh.md)

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

from course.notebook import GREY, experiment, mine
from training.model import GPT, GPTConfig, RMSNorm
from training.optimizer import configure_optimizer as production


class Net(nn.Module):
    """A small residual network for points in the plane; its blocks may be listed in any order."""

    def __init__(self, depth=6, width=32, order=None):
        super().__init__()
        self.depth = depth
        self.embed = nn.Linear(2, width)
        self.blocks = nn.ModuleDict(
            {
                str(i): nn.ModuleDict({"norm": RMSNorm(width), "linear": nn.Linear(width, width)})
                for i in order or range(depth)
            }
        )
        self.final_norm = RMSNorm(width)
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        x = self.embed(x)
        for number in range(self.depth):
            block = self.blocks[str(number)]
            x = x + torch.relu(block["linear"](block["norm"](x)))
        return self.head(self.final_norm(x))


angle = torch.linspace(0.5, 2.5 * torch.pi, 120)
arm = torch.stack([angle.cos(), angle.sin()], 1) * (angle / 8).unsqueeze(1)
points, labels = torch.cat([arm, -arm]), torch.arange(2).repeat_interleave(120)


def train(model, optimizer, steps, watch=None):
    """The loss at each step, and what `watch(model)` said there."""
    losses, seen = [], []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(points), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seen.append(watch(model) if watch else None)
    return losses, seen


# %% [markdown] en
# ## 1 · How much of a model is exempt from decay?
#
# Biases and the gains of norms are not decayed; matrices are. Here is a GPT of a million parameters.
#
# **Question.** Which share of its tensors is exempt, and which share of its numbers?
# %% [markdown] zh
# ## 1 · 模型里有多少参数不做衰减？
#
# 偏置和归一化的增益不衰减，矩阵衰减。这里是一个一百万参数的 GPT。
#
# **问题。** 不衰减的张量占多少？按数值个数算又占多少？

# %%
n_layer, n_embd = 6, 128

with experiment():
    configure = mine("03", "optimizer.configure_optimizer", needs="3.1 3.2 3.3 3.4", reference=production)
    model = GPT(GPTConfig(n_layer=n_layer, n_embd=n_embd))
    groups = configure(model, "adamw", lr=1e-3, weight_decay=0.1).param_groups
    fig, ax = plt.subplots(figsize=(7, 1.8))
    for row in range(2):
        counts = [sum((1, param.numel())[row] for param in group["params"]) for group in groups]
        left = 0.0
        for number, (group, count) in enumerate(zip(groups, counts, strict=True)):
            ax.barh(row, count / sum(counts), left=left, color=f"C{number}", height=0.4)
            ax.text(left, row + 0.24, f"{count:,} with decay {group['weight_decay']:g}")
            left += count / sum(counts)
    ax.set(
        yticks=(0, 1), yticklabels=("tensors", "numbers"), xlabel="share", xlim=(0, 1.25), ylim=(-0.3, 1.6)
    )
    ax.grid(False)

# %% [markdown] en
# A third of the tensors, and a thousandth of the numbers. The exempt ones are few, but every activation passes
# through them.
#
# The rule looks at nothing but the number of dimensions. It needs no list of names, so it also knows the norm
# that somebody writes tomorrow.
# %% [markdown] zh
# 张量占三分之一，数值只占千分之一。不衰减的参数很少，但所有激活值都要经过它们。
#
# 这条规则只看维数，不需要名字清单，所以别人明天写的归一化层它也认得。

# %% [markdown] en
# ## 2 · A norm that decays
#
# The same network is trained with one group for everything, and with groups. The curve is the mean gain of its
# last norm, which begins at 1.
#
# **Question.** The gradient wants the gain to grow, the decay wants it to be 0. Who wins?
# %% [markdown] zh
# ## 2 · 被衰减的归一化层
#
# 同一个网络，一种是所有参数放一组，一种是分组。曲线是最后一个归一化层的平均增益，从 1 开始。
#
# **问题。** 梯度想让增益变大，衰减想让它变成 0。谁赢？

# %%
lr, steps = 0.003, 300

with experiment():
    configure = mine("03", "optimizer.configure_optimizer", needs="3.1 3.2 3.3 3.4", reference=production)
    fig, ax = plt.subplots()
    for grouped, weight_decay in ((False, 0.1), (False, 0.3), (False, 1.0), (True, 0.1), (True, 1.0)):
        torch.manual_seed(0)
        model = Net()
        if grouped:
            optimizer = configure(model, "adamw", lr=lr, weight_decay=weight_decay)
        else:
            optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
        _, gains = train(model, optimizer, steps, lambda model: model.final_norm.weight.mean().item())
        name = "groups" if grouped else "everything decays"
        ax.plot(gains, label=f"{name}, decay {weight_decay}: {gains[-1]:.2f}")
    ax.axhline(1, color=GREY, linewidth=0.8)
    ax.set(xlabel="step", ylabel="mean gain of the last norm", ylim=(0, 1.3))
    ax.legend(loc="lower left")

# %% [markdown] en
# With groups, the gain goes where the gradient takes it, just above 1, and hardly depends on the decay. Without
# groups it is the decay that sets it: 0.55 at a decay of 1.0.
#
# A gain is no weight that could grow too large. It is the scale of what the next layer sees. Whoever tunes the
# decay of such a model, tunes the scale of its activations too, and does not know it.
# %% [markdown] zh
# 分组时，增益由梯度决定，停在 1 稍上方，几乎不随衰减系数变化。不分组时，由衰减系数决定：衰减为 1.0 时是 0.55。
#
# 增益不是那种会涨得过大的权重，它是下一层看到的尺度。给这样的模型调衰减系数，其实也在调激活值的尺度，
# 而自己并不知道。

# %% [markdown] en
# ## 3 · Every layer its own rate
#
# In fine-tuning, the lower layers often get smaller rates. Here each block has half the rate of the one above it.
#
# **Question.** After 30 steps, by how much has each block changed?
# %% [markdown] zh
# ## 3 · 每一层用自己的学习率
#
# 微调时，靠下的层常用更小的学习率。这里每个块的学习率是上一层块的一半。
#
# **问题。** 走 30 步之后，每个块变化了多少？

# %%
factor, lr, steps = 0.5, 0.01, 30

with experiment():
    configure = mine("03", "optimizer.configure_optimizer", needs="3.1 3.2 3.3 3.4 3.5")
    torch.manual_seed(0)
    model = Net()
    overrides = {f"blocks.{number}": {"lr": lr * factor ** (5 - number)} for number in range(6)}
    optimizer = configure(model, "adamw", lr=lr, weight_decay=0.0, overrides=overrides)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    train(model, optimizer, steps)
    change = {name: (param - before[name]).abs().mean().item() for name, param in model.named_parameters()}
    names = ["embed", *(f"blocks.{number}.linear" for number in range(6)), "head"]
    fig, ax = plt.subplots(figsize=(7, 2.8))
    ax.bar([name.removesuffix(".linear") for name in names], [change[f"{name}.weight"] for name in names])
    ax.set(yscale="log", ylabel=f"mean change\nof a weight in {steps} steps")

# %% [markdown] en
# AdamW moves a weight by about lr a step, whatever its gradient is. So the changes follow the rates: from block
# to block a factor close to 2.
#
# An override with `lr` alone leaves the decay as it is, and what no pattern names keeps the default. Here that is
# `embed`: it changes most of all, which is hardly what somebody wants who spares the lower layers.
#
# **Turn it.** Add `"embed": {"lr": lr * factor**6}` to the overrides. Then set `factor = 0.1`.
# %% [markdown] zh
# 不管梯度多大，AdamW 每步大约走 lr 那么远。所以变化量跟着学习率走：相邻的块大致差 2 倍。
#
# 只写了 `lr` 的覆盖不会动衰减，没有模式点到的参数沿用默认值。这里没被点到的是 `embed`：它变化最大，
# 想保护底层的人恐怕不希望这样。
#
# **拧一拧。** 在覆盖里加上 `"embed": {"lr": lr * factor**6}`。再设 `factor = 0.1`。

# %% [markdown] en
# ## 4 · A pattern that matches too much
#
# Somebody wants to freeze `blocks.1`, and looks for the pattern with Python's `in`.
#
# **Question.** In a model of 24 blocks, how many does that hit?
# %% [markdown] zh
# ## 4 · 匹配过头的模式
#
# 有人想冻结 `blocks.1`，用 Python 的 `in` 去找这个模式。
#
# **问题。** 一个有 24 个块的模型，会命中几个？

# %%
pattern = "blocks.1"

with experiment():
    name_matches = mine("03", "optimizer.name_matches", needs="3.5")
    names = [f"blocks.{number}.linear.weight" for number in range(24)]
    rows = {
        "pattern in name": [pattern in name for name in names],
        "name_matches": [name_matches(name, pattern) for name in names],
    }
    fig, ax = plt.subplots(figsize=(8, 1.5))
    for row, (label, hits) in enumerate(rows.items()):
        ax.scatter(
            range(24),
            [row] * 24,
            s=90,
            marker="s",
            facecolors=["C1" if hit else "none" for hit in hits],
            edgecolors=GREY,
        )
        print(f"{label:<16} {sum(hits)} of 24")
    ax.set(xticks=range(24), yticks=(0, 1), yticklabels=rows, ylim=(1.6, -0.6), xlabel="block")
    ax.grid(False)

# %% [markdown] en
# Eleven: `blocks.10` to `blocks.19` begin with the same letters. With ten blocks or fewer the mistake does not
# show, and that is how it gets into a release.
#
# A pattern has to match whole parts of the dotted name.
#
# **Turn it.** Try `pattern = "weight"`, and `pattern = "s.1"`.
# %% [markdown] zh
# 十一个：`blocks.10` 到 `blocks.19` 的开头字符都相同。块数不超过十个时，这个错误看不出来，于是就进了正式版。
#
# 模式要按点号分隔的完整部分去匹配。
#
# **拧一拧。** 试试 `pattern = "weight"` 和 `pattern = "s.1"`。

# %% [markdown] en
# ## 5 · A layer that nobody trains
#
# After the optimizer was built, the last layer is replaced by a new one, say for another task. Everything runs,
# nothing complains.
#
# **Question.** Does the loss still fall?
# %% [markdown] zh
# ## 5 · 没人训练的层
#
# 优化器建好之后，最后一层被换成新的，比如要做另一个任务。一切照常运行，没有任何报错。
#
# **问题。** 损失还会下降吗？

# %%
lr, steps = 0.003, 60

with experiment():
    configure = mine("03", "optimizer.configure_optimizer", needs="3.1 3.2 3.3 3.4", reference=production)
    report = mine("03", "optimizer.ownership_report", needs="3.2 3.6")
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8))
    for name in ("built before", "built after"):
        torch.manual_seed(0)
        model = Net()
        optimizer = configure(model, "adamw", lr=lr, weight_decay=0.0)
        model.head = nn.Linear(32, 2)
        if name == "built after":
            optimizer = configure(model, "adamw", lr=lr, weight_decay=0.0)
        start = model.head.weight.detach().clone()
        missing, stale = report(optimizer, model)
        print(f"{name:<12} missing: {missing}  stale: {stale}")
        losses, moved = train(
            model, optimizer, steps, lambda model, start=start: (model.head.weight - start).norm().item()
        )
        left.plot(losses, label=name)
        right.plot(moved, label=name)
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    right.set(xlabel="step", ylabel="distance that the head moved")
    left.legend(title="optimizer")

# %% [markdown] en
# The loss falls nearly as fast as it should. Nobody would look at this curve twice. But the head has not moved at
# all: the rest of the network learns to live with random numbers.
#
# The old tensors are still in the optimizer, get no gradient, and are passed over. The report compares objects:
# `missing` is what the model trains and the optimizer does not hold, `stale` the other way round.
#
# So build the optimizer last: after the model is on its device, tied, resized and frozen.
# %% [markdown] zh
# 损失下降得和正常情况差不多快，谁也不会对这条曲线多看一眼。可输出层一步都没动：
# 网络的其余部分学会了和一堆随机数共处。
#
# 旧张量还在优化器里，得不到梯度，每步都被跳过。报告按对象身份比对：`missing` 是模型在训练、优化器却没有的，
# `stale` 反过来。
#
# 所以优化器要最后建：等模型放好设备、绑好权重、改好尺寸、冻结完再建。

# %% [markdown] en
# ## 6 · Moments in the wrong hands
#
# A run stops after 100 steps and goes on with new code, in which the blocks are listed in another order. The
# weights are loaded by name. The moments of the optimizer are loaded by position, as torch does it, or by name.
#
# **Question.** All blocks have the same shapes, so there is no error. What does the loss do?
# %% [markdown] zh
# ## 6 · 张冠李戴的动量
#
# 训练在 100 步后停下，换了新代码继续，新代码里各个块的排列次序不同。权重按名字加载。
# 优化器的两个矩则有两种加载法：像 torch 那样按位置，或者按名字。
#
# **问题。** 所有块形状相同，所以不会报错。损失会怎样？

# %%
lr, stop, steps = 0.01, 100, 160

with experiment():
    configure = mine("03", "optimizer.configure_optimizer", needs="3.1 3.2 3.3 3.4", reference=production)
    load_state_by_name = mine("03", "optimizer.load_state_by_name", needs="3.7")
    fig, ax = plt.subplots()
    for name in ("by position", "by name", "not interrupted"):
        torch.manual_seed(0)
        model = Net()
        optimizer = configure(model, "adamw", lr=lr, weight_decay=0.0)
        losses, _ = train(model, optimizer, stop)
        if name != "not interrupted":
            weights, state = model.state_dict(), optimizer.state_dict()
            model = Net(order=range(5, -1, -1))
            model.load_state_dict(weights)
            optimizer = configure(model, "adamw", lr=lr, weight_decay=0.0)
            (
                optimizer.load_state_dict
                if name == "by position"
                else lambda s, o=optimizer: load_state_by_name(o, s)
            )(state)
        losses += train(model, optimizer, steps - stop)[0]
        ax.semilogy(losses, label=f"{name}: {losses[-1]:.2g}")
    ax.axvline(stop, color=GREY, linewidth=0.8)
    ax.set(xlabel="step", ylabel="loss", xlim=(stop - 40, steps))
    ax.legend()

# %% [markdown] en
# By position, each block gets the moments of another one. For three steps nothing happens; then the loss rises by
# a factor of a thousand, because weights with tiny $v$ of a stranger make huge steps. Sixty steps later it is
# still ten times too high.
#
# By name, the curve cannot be told from the run without interruption.
#
# In a log, the jump looks like "the learning rate was too high after the restart". That is the wrong trail.
# %% [markdown] zh
# 按位置加载，每个块拿到的是别的块的矩。头三步风平浪静，然后损失涨到一千倍：权重配上了别人很小的 $v$，
# 步子大得离谱。六十步之后仍然高出十倍。
#
# 按名字加载，曲线和不中断的训练分不出来。
#
# 在日志里，这一跳很像“重启之后学习率太大”。顺着这条线查，就查错了方向。
