"""Lesson 08 in pictures. `python -m course notebooks build 08` writes the notebooks from this file."""

# %% [markdown] en
# # Lesson 08 in pictures · Checkpoint, trainer, logger
#
# Six experiments with what you write in [checkpoint.py](checkpoint.py), [manager.py](manager.py) and
# [trainer.py](trainer.py). Each asks a question: guess first, then run the cell, then turn the knobs at its top.
#
# Where your tasks are written, the cells run on *your* code; elsewhere on a reference, and the line above the picture
# says which. Edit, save, and run a cell again: nothing needs a restart. [The lesson](README.md)

# %% [markdown] zh
# # 第 08 课图解 · 检查点、训练器与日志
#
# 六个实验，用的是你在 [checkpoint.py](checkpoint.py)、
# [manager.py](manager.py) 和 [trainer.py](trainer.py) 里写的代码。每个实验先提一个问题：先猜，再运行单元，
# 然后拧一拧最上面的旋钮，再跑一遍。
#
# 写好的任务用*你的*代码运行，没写的用参考实现代替，图上方那一行会说明是哪一种。改完代码保存，再运行一次单元即可，
# 不用重启。[本课正文](README_zh.md)

# %%
import builtins
import contextlib
import copy
import hashlib
import io
import os
import random
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

import training.checkpoint as production
from course.notebook import GREY, experiment, mine


def my_save():
    return mine("08", "checkpoint.save_checkpoint", needs="8.1 8.2", reference=production.save_checkpoint)


def my_load():
    return mine("08", "checkpoint.load_checkpoint", needs="8.3", reference=production.load_checkpoint)


# %% [markdown] en
# ## 1 · What is in a checkpoint?
#
# A small model, saved after one update with each of three optimizers.
#
# **Predict.** How much larger than the weights is the file of AdamW?

# %% [markdown] zh
# ## 1 · 检查点里装了什么？
#
# 一个小模型，用三种优化器各更新一步，然后保存。
#
# **先猜。** AdamW 的文件有权重的几倍大？

# %%
width = 128  # a knob


def tensor_bytes(tree):
    """The bytes of all tensors in nested dicts and lists; single numbers, such as step counts, left out."""
    if isinstance(tree, torch.Tensor):
        return tree.nbytes if tree.dim() > 0 else 0
    return sum(
        map(tensor_bytes, tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else [])
    )


with experiment(), tempfile.TemporaryDirectory() as folder:
    save_checkpoint = my_save()
    optimizers = {
        "SGD": lambda params: torch.optim.SGD(params, lr=0.1),
        "SGD, momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        "AdamW": lambda params: torch.optim.AdamW(params),
    }
    fig, ax = plt.subplots(figsize=(7, 2))
    for y, (name, make) in enumerate(optimizers.items()):
        model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        optimizer = make(model.parameters())
        model(torch.randn(8, width)).square().mean().backward()
        optimizer.step()
        state = {"epoch": 0, "step": 1, "model_state_dict": model.state_dict()}
        state["optimizer_state_dict"] = optimizer.state_dict()
        save_checkpoint(state, Path(folder, "model.pt"))
        size = Path(folder, "model.pt").stat().st_size
        weights, moments = (
            tensor_bytes(state["model_state_dict"]),
            tensor_bytes(state["optimizer_state_dict"]),
        )
        left = 0
        for part, (label, count) in enumerate(
            {"weights": weights, "optimizer": moments, "all else": size - weights - moments}.items()
        ):
            ax.barh(y, count / 1024, 0.6, left=left, color=f"C{part}", label=label if y == 0 else None)
            left += count / 1024
        print(f"{name:14} {size / weights:.1f} times the weights")
    ax.set(yticks=range(3), yticklabels=optimizers, xlabel="KiB in the file")
    ax.invert_yaxis()
    ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))

# %% [markdown] en
# **What you saw.** Three times the weights: AdamW keeps two numbers for each. "All else" is names, counters, schedule
# and the frame of the file: a few KiB, however large the model is. Yet each line of that small part can spoil a
# resume.

# %% [markdown] zh
# **看到了什么。** 三倍：AdamW 给每个权重另存两个数。“其他”是名字、计数器、学习率调度和文件骨架，不管模型多大，
# 都只有几 KiB。可这一小块里随便少一行，断点续训就可能出问题。

# %% [markdown] en
# ## 2 · Is the best state still the best?
#
# A run that goes well and then, because the learning rate keeps growing, falls apart. At the marked update somebody
# keeps the best state, in two ways: `model.state_dict()`, and your `snapshot` of it.
#
# **Predict.** What is the loss of each of the two kept states, fifteen updates later?

# %% [markdown] zh
# ## 2 · “最佳状态”还是最佳吗？
#
# 训练先是顺利，后来学习率越来越大，垮掉了。在标出的那次更新，有人用两种方式留下了最佳状态：
# `model.state_dict()`，和你的 `snapshot`。
#
# **先猜。** 再过十五次更新，留下的这两份状态，损失各是多少？

# %%
keep_at, updates = 30, 45  # two knobs

with experiment():
    snapshot = mine("08", "checkpoint.snapshot", needs="8.1", reference=production.snapshot)
    model, x = nn.Linear(8, 1), torch.randn(64, 8)
    y, judge = x.sum(1, keepdim=True) + 0.3 * torch.randn(64, 1), nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    kept, curves = {}, {"the run": [], "state_dict()": [], "snapshot": []}
    for update in range(updates):
        if update == keep_at:
            kept = {"state_dict()": model.state_dict(), "snapshot": snapshot(model.state_dict())}
        for name, state in {"the run": model.state_dict(), **kept}.items():
            judge.load_state_dict(state)
            curves[name].append(float((judge(x) - y).square().mean().detach()))
        (model(x) - y).square().mean().backward()
        optimizer.param_groups[0]["lr"] *= 1.12
        optimizer.step()
        optimizer.zero_grad()
    fig, ax = plt.subplots(figsize=(7, 2.8))
    for name, curve in curves.items():
        ax.plot(range(updates - len(curve), updates), curve, label=name, lw=4 if name == "the run" else 2)
        print(f"{name:13} {curve[-1]:.2g} at the end")
    ax.axvline(keep_at, color=GREY, lw=1)
    ax.set(xlabel="update", ylabel="loss", yscale="log")
    ax.legend(loc="lower left")

# %% [markdown] en
# **What you saw.** The loss of the "kept" `state_dict()` lies on the curve of the run: it *is* the run. Its tensors
# are the live weights. The snapshot stands where it was made.

# %% [markdown] zh
# **看到了什么。** 留下的 `state_dict()`，损失就压在训练曲线上：它*就是*正在训练的那份权重，张量是活的。
# 快照则停在拍下的那一刻。

# %% [markdown] en
# ## 3 · Killed in the middle of a save
#
# A checkpoint `model.pt` is replaced by a newer one. A photograph of the folder is taken before each open, write,
# fsync and rename: that is what a kill at this moment leaves behind. Each column is a photograph, and the last row
# says what can be loaded from it.
#
# **Predict.** With plain writing in place, in how many of the columns is there nothing to load?

# %% [markdown] zh
# ## 3 · 保存到一半被杀
#
# 用新检查点替换旧的 `model.pt`。每次 open、write、fsync、rename 之前，给文件夹拍张照：此刻被杀，
# 留下的就是照片里的样子。每一列是一张照片，最后一行是从中还能加载出什么。
#
# **先猜。** 如果直接在原文件上写，有几列什么也加载不出来？

# %%
ways = ["in place", "save_checkpoint"]  # a knob: also "data first"


class WatchedFile:
    """A file that is photographed before the write, and in its middle."""

    def __init__(self, file, click):
        self.file, self.click = file, click

    def write(self, data):
        for half in (data[: len(data) // 2], data[len(data) // 2 :]):
            self.click("write")
            self.file.write(half)
            self.file.flush()
        return len(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


@contextlib.contextmanager
def photographs(folder):
    """A list of (what comes next, {file name: content}), one for each operation on the disk."""
    album, true = [], (builtins.open, os.fsync, os.replace)

    def click(operation):
        album.append((operation, {path.name: path.read_bytes() for path in folder.iterdir()}))

    def watched_open(path, mode="r", *rest, **options):
        if mode != "wb":
            return true[0](path, mode, *rest, **options)
        click("open")
        return WatchedFile(true[0](path, mode, *rest, **options), click)

    def watched(name, operation):
        return lambda *arguments, **options: (click(name), operation(*arguments, **options))[1]

    builtins.open, os.fsync, os.replace = watched_open, watched("fsync", true[1]), watched("rename", true[2])
    try:
        yield album
    finally:
        builtins.open, os.fsync, os.replace = true
    click("end")


def in_place(state, path):
    """The usual two lines, and the digest afterwards."""
    data = as_saved(state)
    for name, content in {path: data, f"{path}.sha256": digest_line(data)}.items():
        with open(name, mode="wb") as target:
            target.write(content)


def data_first(state, path):
    """Each of the two files by your write_atomically, but in the order that comes to mind first."""
    data = as_saved(state)
    write_atomically(path, data)
    write_atomically(path.with_name("model.pt.sha256"), digest_line(data))


def as_saved(state):
    torch.save(state, buffer := io.BytesIO())
    return buffer.getvalue()


def digest_line(data):
    return f"{hashlib.sha256(data).hexdigest()}  model.pt\n".encode()


def look(folder, photograph, before, after):
    """What the photograph shows: of the file, of its digests, of temporary files, and of what loads."""

    def kind(name):
        content = photograph.get(name)
        if content is None:
            return "none"
        old, new = before[name], after[name]
        if set(content.splitlines()) == set(old.splitlines()) | set(new.splitlines()):
            return "both"
        return "old" if content == old else "new" if content == new else "part"

    temporary = [name for name in photograph if name not in before]
    for path in folder.iterdir():
        path.unlink()
    for name, content in photograph.items():
        (folder / name).write_bytes(content)
    try:
        loads = {1: "old", 2: "new"}[load_checkpoint(folder / "model.pt")["step"]]
    except Exception:
        loads = "nothing"
    return [kind("model.pt"), kind("model.pt.sha256"), "there" if temporary else "none", loads]


SHADES = {"none": None, "old": "C0", "new": "C2", "both": "C3", "part": "C4", "there": "C5", "nothing": "C1"}

with experiment(), tempfile.TemporaryDirectory() as scratch:
    save_checkpoint, load_checkpoint = my_save(), my_load()
    if "data first" in ways:
        write_atomically = mine("08", "checkpoint.write_atomically", needs="8.2")
    saves = {"in place": in_place, "data first": data_first, "save_checkpoint": save_checkpoint}
    fig, axes = plt.subplots(len(ways), 1, figsize=(8, 2 * len(ways)), squeeze=False)
    for ax, way in zip(axes[:, 0], ways, strict=True):
        folder = Path(scratch, way)
        folder.mkdir()
        save_checkpoint({"step": 1, "weights": torch.zeros(64)}, folder / "model.pt")
        with photographs(folder) as album:
            saves[way]({"step": 2, "weights": torch.ones(64)}, folder / "model.pt")
        columns = [look(folder, photograph, album[0][1], album[-1][1]) for _, photograph in album]
        for x, column in enumerate(columns):
            for y, word in enumerate(column):
                if SHADES[word]:
                    ax.barh(y, 0.92, left=x - 0.46, height=0.8, color=SHADES[word])
                    ax.text(x, y, word, ha="center", va="center", color="w", fontsize=7)
        rows = ["model.pt", "digest", "temporary", "loads"]
        ax.set(yticks=range(4), yticklabels=rows, xlim=(-0.6, len(columns) - 0.4))
        ax.set_xticks(range(len(columns)), [operation for operation, _ in album], rotation=40, fontsize=7)
        ax.set_xlabel(f"{way}: killed just before …")
        ax.invert_yaxis()
        ax.grid(False)
        print(f"{way:16} {sum(column[3] == 'nothing' for column in columns)} of {len(columns)} load nothing")

# %% [markdown] en
# **What you saw.** In place, the first thing that happens to the good old file is that it is emptied. From there to
# the very last byte of the digest nothing loads. In `save_checkpoint` the last row changes from old to new in one
# step: the rename. Before it, the digest file already names both contents.
#
# **Turn.** Add `"data first"` to `ways`. Each file is replaced atomically there, and still there is a gap. Where?

# %% [markdown] zh
# **看到了什么。** 在原文件上直接写，第一件事就是把好好的旧文件清空；从那一刻到摘要的最后一个字节，什么也加载不出来。
# 而在 `save_checkpoint` 里，最后一行只有一步从 old 变成 new，就是改名那一步。在它之前，
# 摘要文件已经同时写着新旧两份内容。
#
# **拧一拧。** 往 `ways` 里加上 `"data first"`。那里每个文件都是原子替换的，却仍然有缺口。在哪里？

# %% [markdown] en
# ## 4 · One flipped bit
#
# A file of 5000 weights. One random bit is flipped, and the file is loaded; 400 times, at 400 places.
#
# **Predict.** How many of the 400 does plain `torch.load` notice? How wrong can one weight become?

# %% [markdown] zh
# ## 4 · 翻转一个比特
#
# 一个装着 5000 个权重的文件。随机翻转一个比特，再加载；在 400 个位置上做 400 次。
#
# **先猜。** 普通的 `torch.load` 能发现其中几个？一个权重最多会错成什么样？

# %%
flips = 400  # a knob

with experiment(), tempfile.TemporaryDirectory() as folder:
    save_checkpoint, load_checkpoint = my_save(), my_load()
    path, weights, generator = Path(folder, "model.pt"), torch.randn(5000), random.Random(0)
    save_checkpoint({"step": 1, "weights": weights}, path)
    whole, found = path.read_bytes(), {"torch.load": 0, "load_checkpoint": 0}
    places, errors = [], []
    for place in sorted(generator.sample(range(len(whole)), flips)):
        flipped = whole[place] ^ (1 << generator.randrange(8))
        path.write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
        try:
            wrong = (torch.load(path, weights_only=True)["weights"] - weights).abs().max()
            places.append(place / 1024)
            errors.append(float(wrong.nan_to_num(1e40, 1e40)))
        except Exception:
            found["torch.load"] += 1
        try:
            load_checkpoint(path)
        except Exception:
            found["load_checkpoint"] += 1
    for name, count in found.items():
        print(f"{name:16} notices {count} of {flips}")
    fig, ax = plt.subplots(figsize=(7, 2.8))
    ax.scatter(places, [max(error, 1e-9) for error in errors], s=8, color="C1")
    ax.set(yscale="log", xlabel="place in the file, KiB", ylabel="error of a weight", ylim=(1e-10, 1e42))

# %% [markdown] en
# **What you saw.** Each dot is a checkpoint that `torch.load` took without a word. Most errors are tiny, like noise.
# But a bit of the exponent makes 10³⁸ out of 1. (Dots at the bottom: the bit lay in padding.) A digest notices all of
# them.

# %% [markdown] zh
# **看到了什么。** 每个点都是一个被 `torch.load` 一声不吭收下的检查点。大多数误差很小，像噪声；但指数位上的一个比特，
# 能把 1 变成 10³⁸。（最底下的点：那一位落在填充区。）摘要能发现全部。

# %% [markdown] en
# ## 5 · Which files stay?
#
# `keep_last = 3`, and a metric for each save. After step 900 the machine goes down, and its disk damages the two
# newest files. Then a new process goes on from what `latest_valid` gives it.
#
# **Predict.** At which step does it go on? And is the best metric so far still known?

# %% [markdown] zh
# ## 5 · 哪些文件会留下？
#
# `keep_last = 3`，每次保存都带一个指标。第 900 步之后机器宕机，磁盘弄坏了最新的两个文件。
# 然后新进程从 `latest_valid` 给出的文件继续。
#
# **先猜。** 它从第几步继续？此前的最佳指标，新进程还知道吗？

# %%
keep_last, damaged = 3, 2  # two knobs
metrics = {
    100: 2.0,
    200: 1.7,
    300: 1.5,
    400: 1.6,
    500: 1.4,
    600: 1.1,
    700: 1.2,
    800: 1.3,
    900: 1.2,
    1000: 1.05,
    1100: 1.1,
}


def save_steps(manager, steps, moments, bad=()):
    """Save at these steps; note after each which files are there, and the best metric."""
    for step in steps:
        manager.save({"epoch": 1, "step": step, "weights": torch.zeros(4)}, metrics[step])
        names = {int(path.stem.rpartition("_")[2]) for path in manager.checkpoints()}
        bad = set(bad) & names - {step}
        moments.append((step, {name: name not in bad for name in names}, manager.best_metric))


with experiment(), tempfile.TemporaryDirectory() as folder:
    CheckpointManager = mine("08", "manager.CheckpointManager", needs="8.1 8.2 8.3 8.4")
    moments, steps = [], list(metrics)
    first = CheckpointManager(folder, keep_last=keep_last)
    save_steps(first, steps[:9], moments)
    for path in first.checkpoints()[-damaged:]:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    second = CheckpointManager(folder, keep_last=keep_last)
    latest = second.latest_valid()
    begin = int(latest.stem.rpartition("_")[2]) if latest else 0
    print(
        f"goes on at step {begin}, passed over: {len(second.passed_over)}, best metric so far: {second.best_metric}"
    )
    save_steps(second, [step for step in steps if step > begin], moments, steps[9 - damaged : 9])
    fig, (top, ax) = plt.subplots(2, 1, figsize=(7, 4), sharex=True, height_ratios=[1, 2])
    top.plot([metrics[step] for step, _, _ in moments], "o", ms=5, label="metric")
    top.step(range(len(moments)), [best for _, _, best in moments], where="post", label="best_model.pt")
    top.legend(loc="upper right")
    for moment, (_, files, _) in enumerate(moments):
        for step, good in files.items():
            ax.barh(step, 0.9, left=moment - 0.45, height=75, color="C2" if good else "C1")
    ax.axvline(8.5, color=GREY, ls=":")
    ax.set(xlabel="saves, one after the other (orange: damaged)", ylabel="step", yticks=steps)
    ax.set_xticks(range(len(moments)), [step for step, _, _ in moments])

# %% [markdown] en
# **What you saw.** A staircase of three. After the crash, the two newest do not verify, so step 700 is the one to go
# on from. The new process overwrites the damaged files as it comes past them. The best metric came back from
# `best_model.pt`: the 1.3 after the restart did not become "the best".
#
# **Turn.** `keep_last = 2`: nothing numbered is left. What would you restart from?

# %% [markdown] zh
# **看到了什么。** 三个一组的阶梯。宕机之后，最新的两个校验不过，所以从第 700 步继续；新进程走到坏文件的位置，
# 就把它们重新写好。最佳指标从 `best_model.pt` 里读了回来：重启之后的 1.3 没有被当成“最佳”。
#
# **拧一拧。** `keep_last = 2`：带编号的一个也不剩。这时从哪里重启？

# %% [markdown] en
# ## 6 · When is a resume exact, with what we have so far?
#
# Four epochs of five micro-batches, two to a window: updates 1, 2, 3 are the first epoch. The run is killed after
# each update in turn and resumed from its checkpoint.
#
# **Predict.** After which updates does the resumed run end with the very same weights?

# %% [markdown] zh
# ## 6 · 学到这里，什么时候续训才精确？
#
# 四个 epoch，每个五个微批，两个一窗口：更新 1、2、3 属于第一个 epoch。依次在每次更新之后杀掉，再从检查点续训。
#
# **先猜。** 在哪些更新之后被杀，续训到最后的权重一模一样？

# %%
epochs, accumulation_steps = 4, 2  # two knobs


class Regression(nn.Module):
    """loss = model(batch)"""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, batch):
        return nn.functional.mse_loss(self.net(batch), batch.sum(1, keepdim=True))


def make_trainer(model, folder):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.9**update)
    config = {"accumulation_steps": accumulation_steps, "max_grad_norm": 1.0, "save_interval": 1}
    return Trainer(model, optimizer, scheduler, {**config, "save_dir": str(folder), "keep_last": 100})


with experiment(), tempfile.TemporaryDirectory() as folder:
    Trainer = mine("08", "trainer.Trainer", needs="8.1 8.2 8.3 8.4 8.6 8.7")
    model, batches = Regression(), list(torch.randn(5, 8, 4))
    whole = make_trainer(copy.deepcopy(model), Path(folder, "whole"))
    for _ in range(epochs):
        whole.train_epoch(batches)
    apart = {}
    for path in whole.manager.checkpoints():
        resumed = make_trainer(Regression(), Path(folder, path.stem))
        epoch, step = resumed.load_checkpoint(path)
        for _ in range(epoch, epochs):
            resumed.train_epoch(batches)
        pairs = zip(whole.params, resumed.params, strict=True)
        apart[step] = max(
            float((a - b).detach().abs().max()) for a, b in pairs
        )  # the file after the epoch comes last
    fig, ax = plt.subplots(figsize=(7, 2.6))
    ax.bar(list(apart), list(apart.values()), color="C1")
    for step in (step for step, difference in apart.items() if difference == 0):
        ax.text(step, 0, "0", ha="center", va="bottom", color="C2", fontsize=12, fontweight="bold")
    ax.set(xlabel="killed after update", ylabel="largest difference", xticks=list(apart))
    print("exact after updates", *(step for step, difference in apart.items() if difference == 0))

# %% [markdown] en
# **What you saw.** After the end of an epoch: not a bit of difference. Inside one: the checkpoint does not know how
# far the data were read, so the epoch starts over, and some micro-batches are seen twice. Lesson 09 closes this gap.

# %% [markdown] zh
# **看到了什么。** 在 epoch 末尾被杀：一个比特都不差。在中间被杀：检查点不知道数据读到了哪里，
# 于是这个 epoch 从头再来，有些微批看了两遍。第 09 课补上这个缺口。
