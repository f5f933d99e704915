"""A run that is killed twice and resumed twice, beside the same run left alone. Used by make_figures.py.

`measure()` trains with the command of training/ and takes the numbers; `draw()` makes the picture of them.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from docs.figures.svg import Card
from training.logger import read_metrics

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = Path(__file__).with_name("resumed_run.json")
UPDATES, SAVE_EVERY = 120, 20
KILL_AT = (50, 95)  # updates; the kill comes a moment later
COMMAND = (
    "-m training pretrain --n_layer 2 --n_embd 48 --dropout 0.1 --grad_accum_steps 2 --warmup_steps 10 "
    f"--max_steps {UPDATES} --log_interval 1 --eval_interval 40 --save_interval {SAVE_EVERY}"
)
COLORS = ("blue", "red", "green")
LEFT, RIGHT, TOP, PLOT, BAR = 60, 756, 44, 190, 26


def measure() -> None:
    """Train once alone and once with two kills, and write what was found to resumed_run.json."""
    with tempfile.TemporaryDirectory() as scratch:
        alone, killed = Path(scratch, "alone"), Path(scratch, "killed")
        _start(alone).wait()
        processes = [_until_killed(killed, update) for update in KILL_AT]
        resumed_from = _newest(killed)
        _start(killed).wait()
        rows = _losses(killed)
        processes.append({"from": resumed_from, "losses": rows[resumed_from:]})
        equal, tensors = _equal_tensors(alone, killed)
        found = {
            "command": "python " + COMMAND,
            "alone": _losses(alone),
            "processes": processes,
            "equal_tensors": equal,
            "tensors": tensors,
        }
    DATA.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _start(folder: Path) -> subprocess.Popen[bytes]:
    """The command in a process of its own; what it says goes into FOLDER.log."""
    command = [sys.executable, *COMMAND.split(), "--output_dir", str(folder), "--resume", "auto"]
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def _until_killed(folder: Path, update: int) -> dict[str, Any]:
    """Start or resume, kill -9 once the log has reached the update; which updates it computed, and their losses."""
    began = _newest(folder)
    process = _start(folder)
    while len(_losses(folder)) < update:
        if process.poll() is not None:
            said = folder.with_suffix(".log").read_text(encoding="utf-8")
            raise RuntimeError(f"the training ended before update {update}: {said[-500:]}")
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return {"from": began, "losses": _losses(folder)[began:]}


def _newest(folder: Path) -> int:
    """The update of the newest checkpoint; 0 where there is none."""
    return max((int(path.stem.rpartition("_")[2]) for path in folder.glob("epoch_*.pt")), default=0)


def _losses(folder: Path) -> list[float]:
    """The training loss of every update that is in the log."""
    log = folder / "metrics.jsonl"
    return [row["train_loss"] for row in read_metrics(log) if "train_loss" in row] if log.exists() else []


def _equal_tensors(first: Path, second: Path) -> tuple[int, int]:
    """How many tensors of the last checkpoints (weights, moments) are equal bit for bit, and how many there are."""
    trees = []
    for folder in (first, second):
        (path,) = folder.glob(f"epoch_*_step_{UPDATES}.pt")
        saved = torch.load(path, weights_only=True)
        states = saved["optimizer_state_dict"]["state"]
        moments = {f"{i}.{name}": value for i, state in states.items() for name, value in state.items()}
        trees.append(saved["model_state_dict"] | moments)
    if trees[0].keys() != trees[1].keys():
        raise RuntimeError("the two runs ended with different sets of tensors")
    return sum(torch.equal(value, trees[1][name]) for name, value in trees[0].items()), len(trees[0])


def draw(language: str) -> str:
    """The picture as SVG, from resumed_run.json."""
    found = json.loads(DATA.read_text(encoding="utf-8"))
    words = _words(found, language)
    card = Card(772, TOP + PLOT + 44 + BAR * len(found["processes"]) + 28, words["title"])
    card.text(16, 27, words["title"], "ink", 15, 'font-weight="600"')
    _axes(card, words)
    card.path(_curve(1, found["alone"]), "trace", 7, 'stroke-linejoin="round"')
    for index, process in enumerate(found["processes"]):
        points = _curve(process["from"] + 1, process["losses"])
        card.path(points, COLORS[index], 1.8)
        if index + 1 < len(found["processes"]):
            _cross(card, *points[-1], COLORS[index])
    _bars(card, found["processes"], words)
    card.text(16, card.height - 14, words["result"], "ink", 14)
    return card.render()


def _words(found: dict[str, Any], language: str) -> dict[str, str]:
    computed = [(p["from"] + i, loss) for p in found["processes"] for i, loss in enumerate(p["losses"])]
    losses = f"{sum(found['alone'][update] == loss for update, loss in computed)}", f"{len(computed)}"
    tensors = found["equal_tensors"], found["tensors"]
    if language == "zh":
        return {
            "title": "被杀两次、续训两次的训练（彩色），与从未中断的同一次训练（灰色）",
            "y": "损失",
            "x": "更新次数",
            "process": "进程",
            "killed": "kill -9",
            "result": f"逐位相等：算出的 {losses[1]} 个损失中有 {losses[0]} 个，"
            f"结束时 {tensors[1]} 个权重与优化器状态张量中有 {tensors[0]} 个。",
        }
    return {
        "title": "A run killed twice and resumed twice (colours), over the same run left alone (grey)",
        "y": "loss",
        "x": "updates",
        "process": "process",
        "killed": "kill -9",
        "result": f"Equal bit for bit: {losses[0]} of {losses[1]} losses that were computed, and {tensors[0]} of "
        f"{tensors[1]} tensors at the end.",
    }


def _x(update: float) -> float:
    return LEFT + (RIGHT - LEFT) * update / UPDATES


def _y(loss: float) -> float:
    return TOP + PLOT * (5.6 - loss) / (5.6 - 2.4)


def _curve(first: int, losses: list[float]) -> list[tuple[float, float]]:
    return [(_x(first + i), _y(loss)) for i, loss in enumerate(losses)]


def _axes(card: Card, words: dict[str, str]) -> None:
    for loss in (3, 4, 5):
        card.path([(LEFT, _y(loss)), (RIGHT, _y(loss))], "rim", 1)
        card.text(LEFT - 8, _y(loss) + 5, str(loss), "quiet", 13, 'text-anchor="end"')
    for update in range(0, UPDATES + 1, SAVE_EVERY):
        card.path([(_x(update), TOP + PLOT), (_x(update), TOP + PLOT + 5)], "rim", 1)
        card.text(_x(update), TOP + PLOT + 20, str(update), "quiet", 13, 'text-anchor="middle"')
    card.text(16, TOP + 14, words["y"], "quiet", 13)
    card.text(_x(110), TOP + PLOT + 20, words["x"], "quiet", 13, 'text-anchor="middle"')


def _cross(card: Card, x: float, y: float, color: str) -> None:
    for sign in (1, -1):
        card.path([(x - 6, y - 6 * sign), (x + 6, y + 6 * sign)], color, 2.5)


def _bars(card: Card, processes: list[dict[str, Any]], words: dict[str, str]) -> None:
    """From which update to which each process worked."""
    for index, process in enumerate(processes):
        first, last = process["from"], process["from"] + len(process["losses"])
        y = TOP + PLOT + 44 + BAR * index
        card.path([(_x(first), y), (_x(last), y)], COLORS[index], 5, 'stroke-linecap="round"')
        label = f"{words['process']} {index + 1}: {first} → {last}"
        if index + 1 < len(processes):
            _cross(card, _x(last), y, COLORS[index])
            label += f", {words['killed']}"
        if last < UPDATES / 2:
            card.text(_x(last) + 14, y + 5, label, COLORS[index], 13)
        else:
            card.text(_x(first) - 14, y + 5, label, COLORS[index], 13, 'text-anchor="end"')
