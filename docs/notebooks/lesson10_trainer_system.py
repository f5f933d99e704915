"""Lesson 10 in pictures. `python -m course notebooks build 10` writes the notebooks from this file."""

# %% [markdown] en
# # Lesson 10 in pictures · Pretraining, SFT, DPO
#
# Six experiments with what you write in [losses.py](losses.py) and [trainer.py](trainer.py). Each asks a question:
# guess first, then run the cell, then turn the knobs at its top.
#
# Where your tasks are written, the cells run on *your* code; elsewhere on a reference, and the line above the picture
# says which. Edit, save, and run a cell again: nothing needs a restart. [The lesson](README.md)

# %% [markdown] zh
# # 第 10 课图解 · 预训练、SFT、DPO
#
# 六个实验，用的是你在 [losses.py](losses.py) 和 [trainer.py](trainer.py) 里写的代码。每个实验先提一个问题：先猜，
# 再运行单元，然后拧一拧最上面的旋钮，再跑一遍。
#
# 写好的任务用*你的*代码运行，没写的用参考实现代替，图上方那一行会说明是哪一种。改完代码保存，再运行一次单元即可，
# 不用重启。[本课正文](README_zh.md)

# %%
import copy
import functools
import itertools
import math
import random

import matplotlib.pyplot as plt
import torch

import training.preference as production
from course.notebook import GREY, experiment, mine
from training.model import GPT, GPTConfig

# The task: letters and an arrow are answered by the same letters in order, "bd>" by "bd" or by "db".
EOS, ARROW, LETTERS = 0, 1, "abcd"
TOKENS = {">": ARROW, **{letter: number for number, letter in enumerate(LETTERS, 2)}}
NAMES = {EOS: "EOS", **{number: letter for letter, number in TOKENS.items()}}


def encode(text):
    return [TOKENS[letter] for letter in text]


def decode(tokens):
    return "".join(NAMES[token] for token in tokens)


def prompts(count, seed):
    draw = random.Random(seed)
    return ["".join(draw.sample(LETTERS, draw.randint(2, 3))) for _ in range(count)]


def my_rows():
    """Your build_sft_example and collate."""
    return mine("10", "losses.build_sft_example", needs="10.1"), mine("10", "losses.collate", needs="10.2")


def loss_of_training(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    """dpo_loss of training/, which takes chosen and rejected in one tensor."""
    policy, reference = (
        torch.stack([policy_chosen, policy_rejected], 1),
        torch.stack([ref_chosen, ref_rejected], 1),
    )
    return production.dpo_loss(policy, reference, beta)


def my_trainer(name, needs="10.1 10.2 10.5 10.6"):
    return mine("10", f"trainer.{name}", needs=needs)


# %% [markdown] en
# ## 1 · Which tokens are learned?
#
# Three rows of a batch, each with its prompt, its answer, and the filling that makes the rows equally long. EOS and
# filling are the same token here, as in many real models. Under each token that is read stands the token to be
# predicted from it; coloured are the targets.
#
# **Predict.** Is the token below the arrow a target? And is an EOS ever one?

# %% [markdown] zh
# ## 1 · 哪些 token 是要学的？
#
# 一个批里的三行，各有提示词、回答，以及把各行补到一样长的填充。这里 EOS 和填充是同一个 token，很多真实模型也是这样。
# 每个读入的 token 下面，是要从它预测出来的 token；上了色的是目标。
#
# **先猜。** 箭头下面的那个 token 是目标吗？EOS 会不会是目标？

# %%
texts = [("bd", "bd"), ("cab", "abc"), ("dcab", "abcd")]  # three knobs: prompts and answers,
max_length, pad_id = 12, EOS  # the length, and what fills the rows

with experiment():
    build_sft_example, collate = my_rows()
    rows = [build_sft_example(encode(f"{x}>"), encode(y), EOS, max_length) for x, y in texts]
    batch = collate(rows, pad_id)
    fig, ax = plt.subplots(figsize=(7, 2.8))
    for number, (inputs, labels) in enumerate(
        zip(*(batch[key].tolist() for key in ("input_ids", "labels")), strict=True)
    ):
        for place, (token, label) in enumerate(zip(inputs, labels, strict=True)):
            y = 2.4 * number
            filling = place >= len(rows[number]["input_ids"])
            ax.text(place, y, NAMES[token], ha="center", va="center", color=GREY, alpha=0.4 if filling else 1)
            if label == -100:
                ax.text(place, y + 1, "·", ha="center", va="center", color=GREY)
            else:
                ax.barh(y + 1, 0.9, left=place - 0.45, height=0.8, color="C3" if label == EOS else "C2")
                ax.text(place, y + 1, NAMES[label], ha="center", va="center", color="w")
        print("learned:", *(NAMES[label] for label in labels if label != -100))
    ax.set_yticks(
        [2.4 * i + j for i in range(len(rows)) for j in (0, 1)], ["input_ids", "labels"] * len(rows)
    )
    ax.set(xlabel="place", xlim=(-0.6, len(inputs) - 0.4))
    ax.invert_yaxis()
    ax.grid(False)

# %% [markdown] en
# **What you saw.** The arrow belongs to the prompt, but what comes after it belongs to the answer: a target. The EOS
# behind an answer is one, too, although the filling looks just like it. Who masks "every pad token" would mask it,
# and the model would never stop.
#
# **Turn.** `max_length = 5`: the longest answer is cut. What happens to its EOS?

# %% [markdown] zh
# **看到了什么。** 箭头属于提示词，但它后面那个 token 属于回答：是目标。回答后面的 EOS 也是目标，
# 虽然填充看上去和它一模一样。要是“凡是 pad 都屏蔽”，它也会被屏蔽，模型就永远停不下来。
#
# **拧一拧。** `max_length = 5`：最长的回答被截断了。它的 EOS 怎么样了？

# %% [markdown] en
# ## 2 · What does the mask change?
#
# The same model, the same 160 updates, three kinds of labels: answers only; prompts, too; answers without their EOS.
# Measured is always the same thing: the loss on whole answers.
#
# **Predict.** Prompts are text, too, so more is learned from each row. Does that help the answers?

# %% [markdown] zh
# ## 2 · 掩码改变了什么？
#
# 同一个模型，同样更新 160 次，三种标签：只学回答；连提示词也学；只学回答但不学 EOS。量的始终是同一件事：
# 完整回答上的损失。
#
# **先猜。** 提示词也是文本，每行能学的更多。这对回答有帮助吗？

# %%
updates, max_lr = 160, 5e-3  # two knobs


@functools.cache
def make_batches(count, seed, rows):
    """Batches of 32 rows; an answer is ascending or descending by the toss of a coin."""
    build_sft_example, collate = rows
    draw, examples = random.Random(seed), []
    for letters in prompts(32 * count, seed):
        text = "".join(sorted(letters, reverse=draw.random() < 0.5))
        examples.append(build_sft_example(encode(f"{letters}>"), encode(text), EOS, 12))
    return [collate(examples[i : i + 32], EOS) for i in range(0, len(examples), 32)]


def prompts_too(batch):
    """The mistake: labels that stand before the first target are targets, too."""
    labels = batch["labels"].clone()
    before = (labels != -100).cumsum(1) == 0
    following = torch.cat([batch["input_ids"][:, 1:], labels[:, -1:]], dim=1)
    return {**batch, "labels": torch.where(before, following, labels)}


def without_eos(batch):
    """The mistake: EOS is the pad token, so it is masked everywhere."""
    return {**batch, "labels": batch["labels"].masked_fill(batch["labels"] == EOS, -100)}


def finetune(trainer_class, rows, change=lambda batch: batch):
    """A tuned model, and (update, held-out loss on the answers) on the way."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=6, block_size=16, n_layer=2, n_head=2, n_embd=48))
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr, total_steps=updates + 1)
    trainer, curve = trainer_class(model, optimizer, schedule), []
    train, held_out = [change(batch) for batch in make_batches(updates, 1, rows)], make_batches(4, 2, rows)
    for start in range(0, updates, 20):
        trainer.train(train[start : start + 20], num_epochs=1)
        curve.append((trainer.global_step, trainer.evaluate(held_out)["loss"]))
    return model, curve


@functools.cache
def tuned(trainer_class, build_sft_example, collate):
    """The model of "answers only"; trained once, and again after an edit of your code."""
    return finetune(trainer_class, (build_sft_example, collate))


def answers(model, letters):
    """What the model writes behind each prompt, up to its EOS; … where it does not stop."""
    written = {}
    for length in {len(item) for item in letters}:  # prompts of one length need no filling
        same = [item for item in letters if len(item) == length]
        ids = torch.tensor([encode(f"{item}>") for item in same])
        for item, tokens in zip(same, model.generate(ids, 6, 0.0)[:, length + 1 :].tolist(), strict=True):
            written[item] = decode(tokens[: tokens.index(EOS)]) if EOS in tokens else decode(tokens) + "…"
    return [written[item] for item in letters]


with experiment(seconds=60):
    rows, SFTTrainer = my_rows(), my_trainer("SFTTrainer")
    runs = {
        "answers only": tuned(SFTTrainer, *rows),
        "prompts, too": finetune(SFTTrainer, rows, prompts_too),
        "without EOS": finetune(SFTTrainer, rows, without_eos),
    }
    fig, ax = plt.subplots(figsize=(7, 2.8))
    asked = prompts(40, seed=3)
    for name, (model, curve) in runs.items():
        ax.plot(*zip(*curve, strict=True), marker="o", ms=3, label=name)
        texts = answers(model, asked)
        right = sum(
            text in ("".join(sorted(x)), "".join(sorted(x))[::-1])
            for x, text in zip(asked, texts, strict=True)
        )
        print(
            f"{name:13} right: {right:2} of 40   e.g.",
            *(f"{x}>{text}" for x, text in zip(asked[:3], texts[:3], strict=True)),
        )
    ax.set(xlabel="update", ylabel="loss on answers", ylim=(0, None))
    ax.legend()

# %% [markdown] en
# **What you saw.** Learning the prompts did not help: their letters are random, nothing can be learned from them, and
# they take up part of every update. Without EOS the letters come, and then more letters: the model never learned that
# an answer ends.

# %% [markdown] zh
# **看到了什么。** 学提示词没有帮助：那些字母是随机的，没什么可学，却占去每次更新的一部分。不学 EOS 的，
# 字母写完了还接着写：它从没学过回答会结束。

# %% [markdown] en
# ## 3 · Why a sum and not a mean?
#
# The tuned model gets one prompt, and `sequence_logprobs` judges every possible answer of up to three letters: 85 of
# them. Together their probabilities cannot exceed 1.
#
# **Predict.** What comes out if the log-probability is averaged over the tokens?

# %% [markdown] zh
# ## 3 · 为什么是求和，不是平均？
#
# 给微调好的模型一个提示词，让 `sequence_logprobs` 给每一个可能的回答打分：最多三个字母，共 85 种。
# 它们的概率加起来不可能超过 1。
#
# **先猜。** 如果把对数概率按 token 平均，会得到什么？

# %%
prompt, longest = "cab", 3  # two knobs

with experiment(seconds=60):
    sequence_logprobs = mine(
        "10", "losses.sequence_logprobs", needs="10.3", reference=production.sequence_logprobs
    )
    rows = build_sft_example, collate = my_rows()
    model, _ = tuned(my_trainer("SFTTrainer"), *rows)
    candidates = ["".join(text) for n in range(longest + 1) for text in itertools.product(LETTERS, repeat=n)]
    batch = collate(
        [build_sft_example(encode(f"{prompt}>"), encode(text), EOS, 12) for text in candidates], EOS
    )
    with torch.no_grad():
        logprobs = sequence_logprobs(model(batch["input_ids"]), batch["labels"])
    lengths = (batch["labels"] != -100).sum(1)
    scores = {"sum": logprobs.exp(), "mean": (logprobs / lengths).exp()}
    fig, axes = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True)
    for ax, (name, score) in zip(axes, scores.items(), strict=True):
        top = score.argsort(descending=True)[:10].tolist()
        ax.bar([candidates[i] or "(none)" for i in top], score[top], color="C0")
        ax.set(xlabel=f"answers to {prompt}>, by the {name}", ylim=(0, 1))
        ax.tick_params(axis="x", rotation=60)
        print(f"{name:5} all {len(candidates)} answers together: {float(score.sum()):.2f}")
    axes[0].set_ylabel("exp of the score")

# %% [markdown] en
# **What you saw.** The sums make a distribution, and the two right answers share most of it. The means add up to much
# more than 1: they are no probabilities. And they flatter: a long answer with one bad token is diluted by its good
# ones.

# %% [markdown] zh
# **看到了什么。** 求和得到一个概率分布，两个正确的回答占去大半。平均加起来远超过 1：那不是概率。而且它偏心：
# 长回答里的一个坏 token，会被其余的好 token 冲淡。

# %% [markdown] en
# ## 4 · What does the DPO loss want?
#
# A pair is judged by one number: how much more the chosen answer has gained over the reference than the rejected one,
# in nats. On the left the loss, on the right how hard it pulls.
#
# **Predict.** What is the loss at 0, for each β? And where does the pull end?

# %% [markdown] zh
# ## 4 · DPO 损失想要什么？
#
# 一对回答由一个数来评判：相对参考模型，被选中的回答比被拒绝的多涨了多少 nat。左图是损失，右图是它拉得有多用力。
#
# **先猜。** 在 0 处，不同的 β 损失各是多少？拉力到哪里为止？

# %%
betas, widest = (0.1, 0.5, 2.0), 80  # two knobs

with experiment():
    dpo_loss = mine("10", "losses.dpo_loss", needs="10.4", reference=loss_of_training)
    gained, zero = torch.linspace(-widest, widest, 321), torch.zeros(321)
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8))
    for beta in betas:
        chosen = gained.clone().requires_grad_()
        losses, *_ = dpo_loss(chosen, zero, zero, zero, beta)
        losses.sum().backward()
        left.plot(gained, losses.detach(), label=f"beta = {beta}")
        right.plot(gained, -chosen.grad)
        print(
            f"beta = {beta}: loss {float(losses[160].detach()):.4f} and pull {-float(chosen.grad[160]):.2f} at 0"
        )
    naive = -torch.sigmoid(max(betas) * gained).log()
    left.plot(
        gained, naive, color=GREY, ls="-", lw=5, alpha=0.4, label=f"log of sigmoid, {max(betas)}", zorder=0
    )
    print(f"log of sigmoid: inf at {int(naive.isinf().sum())} of {len(gained)} points")
    left.set(xlabel="gain of chosen over rejected, nats", ylabel="loss")
    right.set(xlabel="gain of chosen over rejected, nats", ylabel="pull on the chosen", xlim=(-25, 25))
    left.legend()

# %% [markdown] en
# **What you saw.** ln 2 = 0.6931 at 0, whatever β is. The pull there is β/2, grows to β for pairs that are wrong, and
# fades out for those that are right: the sooner, the larger β is. So β says how far is far enough. The grey line is
# the formula taken literally: it ends where the sigmoid becomes 0 in float32, just where the pairs are worst.

# %% [markdown] zh
# **看到了什么。** 不管 β 是多少，0 处都是 ln 2 = 0.6931。那里的拉力是 β/2；排错的对，拉力增大到 β；排对的对，
# 拉力渐渐消失，β 越大消失得越早。所以 β 说的是“走多远才算够”。灰线是照公式直接写：
# sigmoid 在 float32 里变成 0 的地方，线就断了，而那里恰恰是最糟的对。

# %% [markdown] en
# ## 5 · How do the rewards move?
#
# The tuned model is trained on preferences: ascending rather than descending, and rather than with a mistake.
#
# **Predict.** Does the reward of the chosen answers go up, or that of the rejected ones down? With which β does the
# policy move farther?

# %% [markdown] zh
# ## 5 · 奖励怎样变化？
#
# 用偏好训练微调好的模型：升序的优于降序的，也优于有错的。
#
# **先猜。** 是被选中的回答奖励上升，还是被拒绝的奖励下降？哪个 β 会让策略走得更远？

# %%
betas, dpo_updates, lr = (0.1, 0.5, 2.0), 24, 4e-4  # three knobs


def pairs(count, seed, rows):
    """Batches of 32 pairs: the ascending answer, and the descending one or one with two letters exchanged."""
    build_sft_example, collate = rows
    draw, batches = random.Random(seed), []
    for _ in range(count):
        sides = {"chosen": [], "rejected": []}
        for letters in prompts(32, draw.random()):
            up = "".join(sorted(letters))
            wrong = up[::-1] if draw.random() < 0.5 else up[1:] + up[:1]
            for side, text in zip(sides, (up, wrong), strict=True):
                sides[side].append(build_sft_example(encode(f"{letters}>"), encode(text), EOS, 12))
        batches.append({side: collate(examples, EOS) for side, examples in sides.items()})
    return batches


def prefer(DPOTrainer, start, rows, beta, after_update=lambda trainer: None):
    """Train a copy of `start` on preferences; (the trainer, its means on held-out pairs along the way)."""
    model = copy.deepcopy(start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    trainer, held_out = DPOTrainer(model, optimizer, beta=beta), pairs(3, 6, rows)
    means = [trainer.evaluate(held_out)]
    for number, batch in enumerate(pairs(dpo_updates, 5, rows), 1):
        trainer.train([batch], num_epochs=1)
        after_update(trainer)
        if number % 4 == 0:
            means.append(trainer.evaluate(held_out))
    return trainer, means


with experiment(seconds=60):
    rows, SFTTrainer = my_rows(), my_trainer("SFTTrainer")
    DPOTrainer = my_trainer("DPOTrainer", "10.3 10.4 10.5 10.6 10.7")
    start, _ = tuned(SFTTrainer, *rows)
    steps = range(0, dpo_updates + 1, 4)
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8))
    for number, beta in enumerate(betas):
        _, means = prefer(DPOTrainer, start, rows, beta)
        for side, line in (("chosen_reward", "-"), ("rejected_reward", ":")):
            left.plot(steps, [row[side] for row in means], color=f"C{number}", ls=line)
        right.plot(steps, [row["margin"] / beta for row in means], label=f"beta = {beta}")
        print(
            f"beta = {beta}: loss {means[0]['loss']:.4f} → {means[-1]['loss']:.2f}, margin {means[-1]['margin']:5.2f}, "
            f"moved {means[-1]['margin'] / beta:5.1f} nats"
        )
    left.set(xlabel="update (solid: chosen, dotted: rejected)", ylabel="reward")
    right.set(xlabel="update", ylabel="margin / beta, nats")
    right.legend()

# %% [markdown] en
# **What you saw.** All begin at ln 2 and margin 0. Mostly the rejected answers fall. The chosen ones, which were
# likely already, rise a little and then even come back. The largest β has the largest rewards and yet moves least: it
# reaches "far enough" early, as experiment 4 said.

# %% [markdown] zh
# **看到了什么。** 都从 ln 2、间隔 0 开始。主要是被拒绝的回答在下降。被选中的本来就很可能出现，只升了一点，
# 后来还回落了。β 最大的奖励数值最大，走得却最近：正如实验 4 所说，它很早就“够远”了。

# %% [markdown] en
# ## 6 · What if the reference moves along?
#
# The same training, but after each update the policy's weights are copied into `ref_model`. The left panel shows the
# loss that is logged. The right one measures the truth: how far the policy has moved from where it started.
#
# **Predict.** What does the log show? And does the policy stand still?

# %% [markdown] zh
# ## 6 · 如果参考模型跟着走呢？
#
# 同样的训练，但每次更新之后都把策略的权重拷进 `ref_model`。左图是日志里看到的损失；右图量的是真相：
# 策略离出发点走了多远。
#
# **先猜。** 日志上会看到什么？策略真的没动吗？

# %%
beta = 2.0  # a knob


def move_along(trainer):
    trainer.ref_model.load_state_dict(trainer.model.state_dict())


with experiment(seconds=60):
    rows, SFTTrainer = my_rows(), my_trainer("SFTTrainer")
    DPOTrainer = my_trainer("DPOTrainer", "10.3 10.4 10.5 10.6 10.7")
    start, _ = tuned(SFTTrainer, *rows)
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8))
    for name, moving in {"frozen reference": False, "reference moves along": True}.items():
        truth = []

        def look(trainer, truth=truth, moving=moving):
            judge = DPOTrainer(trainer.model, trainer.optimizer, ref_model=copy.deepcopy(start), beta=beta)
            if trainer.global_step % 4 == 0:
                truth.append(judge.evaluate(pairs(3, 6, rows))["margin"] / beta)
            if moving:
                move_along(trainer)

        trainer, means = prefer(DPOTrainer, start, rows, beta, look)
        left.plot(steps, [row["loss"] for row in means], label=name)
        right.plot(steps, [0, *truth], label=name)
        print(f"{name:22} loss {means[-1]['loss']:.4f}, moved {truth[-1]:5.1f} nats")
    left.axhline(math.log(2), color=GREY, lw=1, ls=":")
    left.set(xlabel="update", ylabel="loss", ylim=(0, 0.8))
    right.set(xlabel="update", ylabel="moved, nats")
    left.legend()

# %% [markdown] en
# **What you saw.** The log stands at 0.6931 for ever, and looks as if nothing were learned. But the policy moves, and
# faster than with the frozen reference: the pull is always β/2, since every pair looks undecided. Nothing says "far
# enough".

# %% [markdown] zh
# **看到了什么。** 日志永远停在 0.6931，好像什么也没学到。可策略一直在动，而且比参考冻结时更快：
# 每一对看上去都不分胜负，拉力始终是 β/2，没有什么会说“够远了”。
