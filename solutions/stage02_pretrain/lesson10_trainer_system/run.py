"""Three stages, three trainers: pretrain a small GPT, teach it a task, teach it what people prefer.

Run it:  python -m solutions.stage02_pretrain.lesson10_trainer_system.run     (or tutorial.…, with your code)
Options: --scale 0.1 (a tenth of the updates), --output_dir

The text is the documentation that ships inside Python, a token is a byte. The task is in tasks.py: put letters
in order. What is measured is measured on letters that the training has never seen.
"""

import argparse
from itertools import islice
from pathlib import Path

import torch
from torch.optim.lr_scheduler import OneCycleLR

from training.data import TokenDataset, bigram_loss, load_text, make_loader, train_val_split
from training.model import GPT, GPTConfig

from .tasks import answer, preference_loader, prompts, score, sft_loader
from .trainer import BaseTrainer, DPOTrainer, PretrainTrainer, SFTTrainer

CONFIG = GPTConfig(block_size=64, n_layer=2, n_head=4, n_embd=96)
UPDATES = {"pretrain": 200, "sft": 800, "dpo": 80}
BETA = 0.5


def run_stage(trainer: BaseTrainer, train_loader: list[dict], val_loader: list[dict]) -> list[tuple]:
    """One pass over the loader in four parts. Returns (update, metrics on held-out data) before and after each."""
    part = max(1, len(train_loader) // 4)
    results = [(0, trainer.evaluate(val_loader))]
    for start in range(0, len(train_loader), part):
        trainer.train(train_loader[start : start + part], num_epochs=1)
        results.append((trainer.global_step, trainer.evaluate(val_loader)))
    return results


def show(title: str, results: list[tuple], names: dict[str, str]) -> None:
    print(f"\n{title}\n  update " + "".join(f"{label:>12}" for label in names.values()), flush=True)
    for step, metrics in results:
        print(f"  {step:>6} " + "".join(f"{metrics[name]:>12.2f}" for name in names))


def pretrain(model: GPT, updates: int) -> list[tuple]:
    train_tokens, val_tokens = train_val_split(load_text(), 0.05, CONFIG.block_size)
    loader = make_loader(TokenDataset(train_tokens, CONFIG.block_size), batch_size=16, shuffle=True)
    train_loader = list(islice(loader, 2 * updates))  # two micro-batches of 16 make an update
    val_loader = list(islice(make_loader(TokenDataset(val_tokens, CONFIG.block_size), 64), 8))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    scheduler = OneCycleLR(optimizer, max_lr=4e-3, total_steps=updates + 2)
    trainer = PretrainTrainer(model, optimizer, scheduler, gradient_accumulation_steps=2)
    results = run_stage(trainer, train_loader, val_loader)
    show("1  pretraining: the next byte of the text", results, {"loss": "loss", "accuracy": "accuracy"})
    print(f"  (a bigram model has a loss of {bigram_loss(train_tokens, val_tokens):.2f})")
    return results


def finetune(model: GPT, updates: int, held_out: list[str]) -> list[tuple]:
    train_loader = sft_loader(prompts(64 * updates, held_out=False, seed=2), 64, seed=3)
    val_loader = sft_loader(held_out, 100, seed=4)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    scheduler = OneCycleLR(optimizer, max_lr=3e-3, total_steps=updates + 2)
    results = run_stage(SFTTrainer(model, optimizer, scheduler), train_loader, val_loader)
    show("2  fine-tuning: letters in order", results, {"loss": "loss", "accuracy": "accuracy"})
    return results


def prefer(model: GPT, updates: int, held_out: list[str]) -> list[tuple]:
    train_loader = preference_loader(prompts(64 * updates, held_out=False, seed=5), 64, seed=6)
    val_loader = preference_loader(held_out, 100, seed=7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
    results = run_stage(DPOTrainer(model, optimizer, beta=BETA), train_loader, val_loader)
    names = {"loss": "loss", "accuracy": "preference", "margin": "margin"}
    names |= {"chosen_reward": "r(chosen)", "rejected_reward": "r(rejected)"}
    show("3  preferences: ascending, and without mistakes", results, names)
    return results


def draw(stages: list[list[tuple]], path: Path) -> None:
    """Three panels: loss, loss, and the share of preferred pairs with the margin."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
    titles = "1  pretraining", "2  fine-tuning", "3  preferences"
    for axes, title, results in zip(panels, titles, stages, strict=True):
        steps = [step for step, _ in results]
        names = ("loss", "accuracy", "margin") if "margin" in results[0][1] else ("loss", "accuracy")
        for name in names:
            axes.plot(steps, [metrics[name] for _, metrics in results], "o-", markersize=3, label=name)
        axes.set(title=title, xlabel="update", ylim=(0, 1.25 * axes.get_ylim()[1]))
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", ncols=len(names), fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain, fine-tune and align a small GPT.")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the updates (default: 1)")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/lesson10"), help="(default: %(default)s)"
    )
    args = parser.parse_args()
    if not args.scale > 0:
        parser.error(f"--scale must be > 0, got {args.scale}")
    updates = {name: max(4, round(count * args.scale)) for name, count in UPDATES.items()}
    torch.set_num_threads(1)  # small tensors: more threads only add waiting
    torch.manual_seed(0)
    model = GPT(CONFIG)
    held_out = prompts(200, held_out=True, seed=1)
    stages, rows = [], []

    def measure(after: str) -> None:
        answers, sampled = answer(model, held_out), answer(model, held_out, temperature=1.0)
        rows.append((after, score(held_out, answers), score(held_out, sampled), answers[:3]))

    sft_loader(held_out[:1], 1, seed=0)  # quicker than the corpus: what is not written yet shows at once
    stages.append(pretrain(model, updates["pretrain"]))
    measure("pretraining")
    stages.append(finetune(model, updates["sft"], held_out))
    measure("fine-tuning")
    stages.append(prefer(model, updates["dpo"], held_out))
    measure("preferences")

    print(f"\n{'200 held-out prompts':<24}  exact match   ascending   ascending, sampled   {held_out[0]} ->")
    for after, greedy, sampled, answers in rows:
        print(
            f"  after {after:<14}{greedy['exact']:>15.2f}{greedy['ascending']:>12.2f}"
            f"{sampled['ascending']:>21.2f}   {answers[0]!r}"
        )
    draw(stages, args.output_dir / "results.png")
    print(f"\npicture  {args.output_dir / 'results.png'}")


if __name__ == "__main__":
    try:
        main()
    except NotImplementedError as todo:
        raise SystemExit(f"Not written yet: {todo}") from None
