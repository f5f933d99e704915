"""Three pictures of what AdamW does with a gradient. Needs tasks 2.1 to 2.5.

Run it:    python -m solutions.stage01_optimizers.lesson02_adamw.run
"""

import torch
from torch.nn import Parameter

from .optimizer import AdamWFromScratch, bias_corrections


def bar(value: float, full: float, width: int = 30) -> str:
    """`value` as a bar; `full` fills the width."""
    return "█" * round(width * value / full)


def first_updates() -> None:
    """SGD's first step follows the size of the gradient; AdamW's is lr."""
    print("1. The first update, lr = 0.1\n")
    print("   gradient    SGD moves    AdamW moves")
    for gradient in (0.001, 1.0, 1000.0):
        param = Parameter(torch.zeros(1))
        optimizer = AdamWFromScratch([param], lr=0.1)
        param.grad = torch.tensor([gradient])
        optimizer.step()
        print(f"   {gradient:<8g}    {0.1 * gradient:<9g}    {-param.item():.3f}")


def uncorrected_updates() -> None:
    """The size of an update in units of lr, for a gradient that is always 1, if m and v were used as they are."""
    print("\n2. The same gradient at every step: updates without bias correction, in units of lr\n")
    for step in (1, 3, 10, 30, 100, 300, 1000, 3000):
        correction1, correction2 = bias_corrections(float(step), beta1=0.9, beta2=0.999)
        size = correction1 / correction2**0.5
        print(f"   step {step:<4}  {size:4.2f}  {bar(size, 7.0)}")
    print(f"   with it    1.00  {bar(1.0, 7.0)}")


def weight_after_training(gradient: float, *, decoupled: bool) -> float:
    """A weight of 1 after 1000 updates, its gradient +gradient and −gradient in turn; lr·decay is 0.001."""
    param = Parameter(torch.ones(1))
    optimizer = AdamWFromScratch([param], lr=0.001, weight_decay=1.0 if decoupled else 0.0)
    for step in range(1000):
        param.grad = torch.tensor([gradient if step % 2 else -gradient])
        if not decoupled:
            param.grad += 1.0 * param.detach()  # L2: the decay is a part of the gradient
        optimizer.step()
    return param.item()


def decays() -> None:
    """L2 in the gradient is divided by the gradient's size; AdamW's decay is not."""
    print("\n3. What weight decay leaves of a weight of 1 after 1000 updates\n")
    print("   gradient    L2 in the gradient                     decoupled (AdamW)")
    for gradient in (10.0, 100.0, 1000.0):
        coupled = weight_after_training(gradient, decoupled=False)
        decoupled = weight_after_training(gradient, decoupled=True)
        print(
            f"   ±{gradient:<9g}  {coupled:4.2f}  {bar(coupled, 1.0):<30}   {decoupled:4.2f}  {bar(decoupled, 1.0)}"
        )


def main() -> None:
    first_updates()
    uncorrected_updates()
    decays()


if __name__ == "__main__":
    try:
        main()
    except NotImplementedError as todo:
        raise SystemExit(f"Not written yet: {todo}") from None
