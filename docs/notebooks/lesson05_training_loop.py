"""Notebook of lesson 05: a training loop, and the measurements around it.

Build it: python -m course notebooks build 05      How to write one: course/notebook.py
"""

# %% [markdown] en
# # Lesson 05 · A loop that trains, and numbers that are true
#
# Five experiments: a small GPT learns to add, and then four ways to measure it wrongly or to disturb it by
# measuring. Make your prediction before you run a cell. Then turn the knobs at its top.
#
# Where your tasks in [trainer.py](trainer.py), [losses.py](losses.py) and [evaluation.py](evaluation.py) are
# written, the cells run on *your* code; elsewhere on a reference, and the line above the picture says so. Edit,
# save, and run a cell again. [The lesson](README.md)
# %% [markdown] zh
# # 第 05 课 · 能训练的循环，和真实的数字
#
# 五个实验：一个小 GPT 学做加法，然后是四种量错、或者因为测量而干扰训练的方式。先猜结果，再运行，
# 然后拧一拧单元开头的旋钮。
#
# [trainer.py](trainer.py)、
# [losses.py](losses.py) 和 [evaluation.py](evaluation.py) 里写好的任务用*你的*代码运行，没写的用参考实现代替，
# 图上方那一行会说明是哪一种。改完代码保存，再运行一次单元即可。[本课正文](README_zh.md)

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader

from course.notebook import GREY, experiment, mine
from training.evaluation import eval_mode
from training.losses import count_tokens, token_loss
from training.model import GPT, GPTConfig

ALPHABET = "0123456789+=\n"
TRAINER_TASKS = "5.1 5.2 5.3 5.4 5.5 5.6 5.7"


def sums(count, seed, length=8):
    """Lines like `7+8=15` as batches of tokens; the padding is no target."""
    numbers = torch.randint(0, 10, (count, 2), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = []
    for a, b in numbers:
        tokens = [ALPHABET.index(letter) for letter in f"{a}+{b}={a + b}\n"]
        pad = length + 1 - len(tokens)
        rows.append({"input_ids": (tokens + [0] * pad)[:length], "labels": tokens[1:] + [-100] * pad})
    return [{key: torch.tensor(value) for key, value in row.items()} for row in rows]


def tiny_gpt(dropout=0.0):
    torch.manual_seed(0)
    return GPT(GPTConfig(len(ALPHABET), block_size=8, n_layer=1, n_head=2, n_embd=48, dropout=dropout))


def make_trainer(trainer_class, optimizer_class=torch.optim.AdamW, dropout=0.0, **settings):
    """A trainer for 512 sums in batches of 32."""
    model = tiny_gpt(dropout)
    loader = DataLoader(sums(512, seed=1), batch_size=32, shuffle=True)
    return trainer_class(model, optimizer_class(model.parameters(), lr=5e-3), loader, **settings)


# %% [markdown] en
# ## 1 · A GPT learns to add
#
# The text is lines like `7+8=15`. The tokens before the `=` are random: nobody can know the next digit of a
# question.
#
# **Question.** Where does the loss end, if the model can add perfectly?
# %% [markdown] zh
# ## 1 · 让 GPT 学做加法
#
# 文本是 `7+8=15` 这样的行。`=` 之前的 token 是随机的：题目的下一个数字谁也不可能知道。
#
# **问题。** 如果模型能完美地做加法，损失会停在哪里？

# %%
epochs = 20

with experiment():
    Trainer = mine("05", "trainer.TrainerFromScratch", needs=TRAINER_TASKS)
    validation = DataLoader(sums(200, seed=2), batch_size=50)
    trainer = make_trainer(Trainer, val_loader=validation, max_epochs=epochs, log_interval=4)
    history = trainer.train()
    rows = [row for row in history if "train_loss" in row]
    ends = [row for row in history if "val_loss" in row]
    lengths = [count_tokens(row["labels"]) for row in sums(200, seed=2)]
    floor = math.log(10) * 200 / sum(lengths)  # one digit of each line is unknown: the second number
    fig, ax = plt.subplots()
    ax.plot([row["global_step"] for row in rows], [row["train_loss"] for row in rows], label="training")
    ax.plot(
        [row["global_step"] for row in ends],
        [row["val_loss"] for row in ends],
        marker="o",
        label="validation",
    )
    ax.axhline(floor, color=GREY, linewidth=0.8)
    ax.set(xlabel="update", ylabel="loss, nats a token", ylim=(0, None))
    ax.legend()
    for question in ("7+8=", "3+4=", "9+9="):
        tokens = torch.tensor([[ALPHABET.index(letter) for letter in question]])
        answer = trainer.model.generate(tokens, 2, temperature=0)[0]
        print("".join(ALPHABET[token] for token in answer).split("\n")[0])

# %% [markdown] en
# At the grey line. The second number of each line is one of ten digits, and costs $\ln 10$ nats however good the
# model is. Divided by the number of tokens in a line, that is 0.42. What lies above the line can still be
# learned.
#
# A loss has a floor, and it is not 0. For real text nobody knows it; here we can compute it, and see that the run
# has not finished yet.
#
# **Turn it.** Training ends below the validation: how can that be, if both are sums of two digits? Give
# `make_trainer` four times as many sums, and set `epochs = 5`.
# %% [markdown] zh
# 停在灰线上。每行的第二个数是十个数字之一，模型再好也要付出 $\ln 10$ 奈特。除以每行的 token 数，就是 0.42。
# 灰线以上的部分还能学。
#
# 损失有下限，而且不是 0。真实文本的下限没人知道；这里可以算出来，于是看得出训练还没结束。
#
# **拧一拧。** 训练损失最后低于验证损失：两边都是个位数加法，怎么会这样？让 `make_trainer` 用四倍的算式，
# 再设 `epochs = 5`。

# %% [markdown] en
# ## 2 · The mean of the means
#
# The validation set has 200 rows, and they have different numbers of tokens. The model is the same all the time;
# only the size of the validation batches changes.
#
# **Question.** Does the validation loss depend on the batch size?
# %% [markdown] zh
# ## 2 · 平均值的平均
#
# 验证集有 200 行，每行的 token 数不同。模型从头到尾不变，只改验证时的批大小。
#
# **问题。** 验证损失会随批大小变化吗？

# %%
sizes = (1, 3, 7, 16, 30, 64, 99, 128, 150, 190, 199, 200)

with experiment():
    TokenAverage = mine("05", "losses.TokenAverage", needs="5.2")
    my_token_loss = mine("05", "losses.token_loss", needs="5.1", reference=token_loss)
    model = tiny_gpt()
    rows = sums(190, seed=2)
    for row in sums(10, seed=3):  # ten rows of which only the random question is a target
        row["labels"][2:] = -100
        rows.append(row)
    by_tokens, by_batches = [], []
    for size in sizes:
        average, means = TokenAverage("validation"), []
        for batch in DataLoader(rows, batch_size=size):
            with torch.no_grad():
                loss_sum, count = (
                    my_token_loss(model(batch["input_ids"]), batch["labels"]),
                    count_tokens(batch["labels"]),
                )
            average.add(loss_sum, count)
            means.append(loss_sum.item() / count)
        by_tokens.append(average.mean())
        by_batches.append(sum(means) / len(means))
    fig, ax = plt.subplots()
    ax.plot(sizes, by_tokens, marker="o", label="sum of losses / number of tokens")
    ax.plot(sizes, by_batches, marker="o", label="mean of the batches' means")
    ax.set(xlabel="validation batch size", ylabel="validation loss")
    ax.legend()

# %% [markdown] en
# It must not, and the sum over all tokens does not. The mean of the means jumps: with a batch size of 199 the
# last batch is a single row with two targets, and it counts as much as all the others together.
#
# A validation loss that changes by 0.05 because somebody bought a larger GPU compares nothing. In training the
# same mistake gives short rows more weight than long ones.
#
# **Turn it.** Look at `sizes` of 100 and 101.
# %% [markdown] zh
# 不该变，对所有 token 求和再平均就不变。平均值的平均会跳：批大小为 199 时，最后一批只有一行，只有两个目标，
# 却和其他所有行加起来一样重。
#
# 换了块大显卡，验证损失就变了 0.05，这样的数字没法比较。训练时犯同样的错，短的行就比长的行更重。
#
# **拧一拧。** 在 `sizes` 里看看 100 和 101。

# %% [markdown] en
# ## 3 · An evaluation with dropout on
#
# **Question.** A model with dropout 0.2 is measured forty times on the same data, in train mode. How far do the
# results scatter, and around what?
# %% [markdown] zh
# ## 3 · 开着 dropout 做评估
#
# **问题。** 一个 dropout 为 0.2 的模型，在训练模式下用同样的数据量四十次。结果散布多大？围绕着什么值？

# %%
dropout, times = 0.2, 40

with experiment():
    Trainer = mine("05", "trainer.TrainerFromScratch", needs=TRAINER_TASKS)
    evaluation_mode = mine("05", "evaluation.evaluation_mode", needs="5.5", reference=eval_mode)
    trainer = make_trainer(Trainer, dropout=dropout, max_epochs=8)
    trainer.train()
    batch = next(iter(DataLoader(sums(200, seed=2), batch_size=200)))

    def measure():
        logits = trainer.model(batch["input_ids"])
        return token_loss(logits, batch["labels"]).item() / count_tokens(batch["labels"])

    in_train_mode = [measure() for _ in range(times)]
    with evaluation_mode(trainer.model):
        in_eval_mode = [measure() for _ in range(times)]
    fig, ax = plt.subplots(figsize=(7, 2.6))
    ax.hist(in_train_mode, bins=12, color="C1", label="train mode")
    ax.axvline(in_eval_mode[0], color="C0", label="eval mode")
    ax.set(xlabel="validation loss", ylabel="measurements")
    ax.legend()
    print(
        f"different values of {times}: train mode {len(set(in_train_mode))}, eval mode {len(set(in_eval_mode))}"
    )
    print(f"mode afterwards: training={trainer.model.training}")

# %% [markdown] en
# They scatter by about 0.05, and not around the true value: all of them are too high. A model with a part of its
# activations removed is a worse model.
#
# Two runs could trade places on this noise alone. And a gap between training and validation that is measured like
# this is the other way round: the training loss *is* measured with dropout.
#
# The last line counts too. After the evaluation the model is in train mode again; were it not, the rest of the
# run would train without dropout.
# %% [markdown] zh
# 散布大约 0.05，而且围绕的不是真值：全都偏高。一部分激活值被去掉的模型，就是更差的模型。
#
# 单凭这点噪声，两次训练的名次就可能对调。这样量出来的训练与验证之差，方向也会反：
# 训练损失*本来就是*开着 dropout 量的。
#
# 最后一行也很重要。评估之后模型要回到训练模式；否则余下的训练就没有 dropout 了。

# %% [markdown] en
# ## 4 · Looking changes the result
#
# Two runs with the same seed. One is evaluated at every tenth update; the evaluation changes no weight. We draw
# by how much the weights of the two runs differ.
#
# **Question.** Should there be any difference? And where could it come from?
# %% [markdown] zh
# ## 4 · 看一眼，结果就变了
#
# 两次训练用同一个种子。其中一次每十步评估一下，评估不改任何权重。我们画出两次训练的权重相差多少。
#
# **问题。** 应该有差别吗？如果有，会从哪里来？

# %%
dropout, every = 0.1, 10

with experiment():
    Trainer = mine("05", "trainer.TrainerFromScratch", needs=TRAINER_TASKS)
    preserve_rng = mine("05", "evaluation.preserve_rng", needs="5.5")

    def run(evaluate):
        """All weights after each update of one epoch, with `evaluate()` at every tenth."""
        trainer = make_trainer(Trainer, dropout=dropout)
        seen = []
        for batch in [batch for _ in range(3) for batch in trainer.train_loader]:
            trainer.train_step(batch)
            if trainer.global_step % every == 0:
                evaluate()
            seen.append(torch.cat([param.detach().flatten() for param in trainer.model.parameters()]))
        return torch.stack(seen)

    def look():
        """What any evaluation does: begin to iterate a DataLoader."""
        next(iter(DataLoader(sums(50, seed=2), batch_size=50)))

    def look_and_put_back():
        with preserve_rng():
            look()

    alone = run(lambda: None)
    fig, ax = plt.subplots()
    for name, evaluate in (("evaluated", look), ("evaluated, generators put back", look_and_put_back)):
        ax.plot((run(evaluate) - alone).norm(dim=1), label=name)
    ax.set(xlabel="update", ylabel="difference of the weights")
    ax.legend()

# %% [markdown] en
# The evaluation changes no weight, and yet from update 11 on these are two different runs. Beginning to iterate a
# `DataLoader` takes a seed from torch's global generator, so the next dropout masks are others.
#
# With the generators put back, the difference is exactly 0.
#
# Nothing here is wrong in the sense of worse. But whoever turns evaluation on to debug a run gets another run to
# debug. And a resume (lesson 09) can only be exact if looking leaves no trace.
#
# **Turn it.** Set `dropout = 0.0`. Is there still a difference? The order of the batches was drawn beforehand
# here; in a real loop it would be drawn afterwards.
# %% [markdown] zh
# 评估没有改任何权重，可从第 11 次更新起，这就是两次不同的训练了。
# 开始遍历一个 `DataLoader` 会从 torch 的全局生成器里取一个种子，后面的 dropout 掩码就都变了。
#
# 把生成器放回原状，差别恰好为 0。
#
# 这里并没有哪个更差。但是，有人为了调试一次训练而打开评估，调的就成了另一次训练。而且只有看一眼不留痕迹，
# 续训（第 09 课）才可能完全精确。
#
# **拧一拧。** 设 `dropout = 0.0`。还有差别吗？这里批的次序是事先抽好的；在真实的循环里，它会在评估之后才抽。

# %% [markdown] en
# ## 5 · A step without its last line
#
# `zero_grad` is easily forgotten, or put in the wrong place. Here is the same trainer with three optimizers: a
# whole one, one that never clears, and one that clears only at every fourth call.
#
# **Question.** Without clearing, each gradient is the sum of all before it. Does the loss explode?
# %% [markdown] zh
# ## 5 · 少了最后一行的一步
#
# `zero_grad` 很容易忘，也很容易放错地方。同一个训练器，配三种优化器：正常的、从不清梯度的、每四次调用才清一次的。
#
# **问题。** 不清梯度，每一步的梯度都是之前所有梯度之和。损失会爆炸吗？

# %%
epochs = 6


class NeverClears(torch.optim.AdamW):
    def zero_grad(self, set_to_none=True):
        pass


class ClearsSometimes(torch.optim.AdamW):
    calls = 0

    def zero_grad(self, set_to_none=True):
        self.calls += 1
        if self.calls % 4 == 0:
            super().zero_grad(set_to_none)


with experiment():
    Trainer = mine("05", "trainer.TrainerFromScratch", needs=TRAINER_TASKS)
    fig, ax = plt.subplots()
    for optimizer_class in (torch.optim.AdamW, NeverClears, ClearsSometimes):
        history = make_trainer(Trainer, optimizer_class, max_epochs=epochs, log_interval=2).train()
        rows = [row for row in history if "train_loss" in row]
        label = f"{optimizer_class.__name__}: {rows[-1]['train_loss']:.2f}"
        ax.plot([row["global_step"] for row in rows], [row["train_loss"] for row in rows], label=label)
    ax.set(xlabel="update", ylabel="training loss", ylim=(0, None))
    ax.legend()

# %% [markdown] en
# It does not explode: AdamW divides the size of the gradient away. It just does not learn. The direction is the
# sum of everything since the beginning, most of it long out of date.
#
# The third run is the dangerous one. It learns, only worse, and its curve looks like a learning rate that wants
# tuning.
#
# **Turn it.** Clear at every second call, `self.calls % 2`, then at every eighth. How much of it would you notice
# in a log?
# %% [markdown] zh
# 不会爆炸：AdamW 把梯度的大小除掉了。它只是学不动。方向是从开头到现在所有梯度的总和，大部分早就过时了。
#
# 第三种才危险。它能学，只是差一些，曲线看起来像是学习率还要再调。
#
# **拧一拧。** 改成每两次清一次，`self.calls % 2`，再改成每八次。看日志你能察觉多少？
