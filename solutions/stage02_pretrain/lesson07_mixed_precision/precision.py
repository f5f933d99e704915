"""Lesson 07: a model in float16 or bfloat16, and its float32 master weights.  Tasks 7.5, 7.6.

Holds:    MasterWeights; measure_bytes, which weighs what a training holds in memory
Test it:  pytest testcases/basic_test.py -k "master or gradients or weights"

Symbols:  w the model's weights, float16 or bfloat16 · W their float32 masters · g, G the gradients of each

Paper: Micikevicius et al., "Mixed Precision Training", ICLR 2018, https://arxiv.org/abs/1710.03740
(master copy of the weights, section 3.1).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def is_norm(module: nn.Module) -> bool:
    """LayerNorm, BatchNorm, RMSNorm, …, and your own if "Norm" is in the name of its class."""
    return "Norm" in type(module).__name__


class MasterWeights:
    """Puts a model into float16 or bfloat16, and keeps its weights in float32 for the optimizer.

    One update:
        forward and backward of the model, in low precision
        copy_grads_to_masters()   after each backward: G ← G + g, in float32
        the optimizer steps the masters
        copy_masters_to_model()   w ← round(W)

    Which layers stay in float32: those for which `keep_fp32(module)` is true. Their inputs are cast to
    float32 and their outputs to `dtype` by hooks, and each of their parameters is its own master. The loss is
    taken in float32 by `training.losses.token_loss`, whatever the logits are.

    Args:
        model: with float32 parameters. It is changed in place: parameters and floating-point buffers are
            cast, and every parameter stays the same object, so that tied weights stay tied.
        dtype: torch.float16 or torch.bfloat16.
        keep_fp32: which modules stay in float32, by default the norms: their statistics are sums of squares,
            which overflow in float16 and are too coarse in bfloat16.

    Attributes:
        model, dtype: as given.
        masters: name → master, in the order of `model.named_parameters()`; a tied weight is there once.

    Raises:
        ValueError: another dtype; or a parameter that is not float32, whose digits are lost already.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, keep_fp32: Callable[[nn.Module], bool] = is_norm
    ) -> None:
        if dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(f"dtype must be torch.float16 or torch.bfloat16, got {dtype}")
        for name, param in model.named_parameters():
            if param.dtype != torch.float32:
                raise ValueError(f"{name} must be float32 to make a master of it, got {param.dtype}")
        self.model = model
        self.dtype = dtype
        kept = [module for module in model.modules() if keep_fp32(module)]
        stay = {id(tensor) for module in kept for tensor in (*module.parameters(), *module.buffers())}
        self.masters: dict[str, nn.Parameter] = {}
        for name, param in model.named_parameters():  # names a tied weight once
            if id(param) in stay:
                self.masters[name] = param
                continue
            # TODO 7.5 round the model, and keep the weights in float32
            # self.masters[name]: a leaf of its own, with all the digits, which requires a gradient if param
            # does. Then give param the dtype, as the same object (param.data), and no gradient
            # BEGIN SOLUTION
            master = nn.Parameter(param.detach().clone(), requires_grad=param.requires_grad)
            self.masters[name] = master
            param.data = param.data.to(dtype)
            param.grad = None  # of the old dtype, if there is one
            # END SOLUTION
        _cast_buffers(model, dtype, stay)
        for module in kept:
            module.register_forward_pre_hook(lambda _, args: _cast(args, torch.float32))
            module.register_forward_hook(lambda _, args, output: _cast(output, dtype))

    def pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """(param of the model, its master) wherever these are two tensors."""
        for name, param in self.model.named_parameters():
            if self.masters[name] is not param:
                yield param, self.masters[name]

    def attach(self, optimizer: Optimizer) -> None:
        """Let an optimizer that was built on the model own the masters instead.

        Groups keep their options and their order, so a scheduler built on the optimizer goes on, and so does
        its state_dict. State that it has already moves along. Tensors that are no parameters of the model
        stay. A second call changes nothing.

        Args:
            optimizer: its parameters are those of the model, or a part of them.
        """
        master_of = {id(param): master for param, master in self.pairs()}
        # TODO 7.5 round the model, and keep the weights in float32
        # every group, and the keys of optimizer.state
        # BEGIN SOLUTION
        for group in optimizer.param_groups:
            group["params"] = [master_of.get(id(param), param) for param in group["params"]]
        for param, master in self.pairs():
            if param in optimizer.state:
                optimizer.state[master] = optimizer.state.pop(param)
        # END SOLUTION

    def copy_grads_to_masters(self) -> None:
        """Add the model's gradients to those of the masters, and take them from the model.

        Mathematics: G ← G + float32(g), then g ← None. Where there is no g, G stays as it is.

        Called after each backward, so a window adds up in float32: in float16, 2048 + 1 is 2048.
        """
        # TODO 7.6 carry gradients up and weights down
        # for param, master in self.pairs(): a layer that stays in float32 needs nothing
        # BEGIN SOLUTION
        for param, master in self.pairs():
            if param.grad is None:
                continue
            grad = param.grad.float()
            master.grad = grad if master.grad is None else master.grad.add_(grad)
            param.grad = None
        # END SOLUTION

    @torch.no_grad()
    def copy_masters_to_model(self) -> None:
        """w ← round(W), after a step of the optimizer. In place: the parameters stay the same objects."""
        # TODO 7.6 carry gradients up and weights down
        # BEGIN SOLUTION
        for param, master in self.pairs():
            param.copy_(master)
        # END SOLUTION

    def state_dict(self) -> dict[str, Tensor]:
        """name → a copy of the master, for every parameter of the model. Put this into the checkpoint."""
        return {name: master.detach().clone() for name, master in self.masters.items()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Take over float32 weights, in place. The model and the masters have them afterwards.

        Args:
            state_dict: name → float32 tensor, for every parameter of the model.

        Raises:
            ValueError: missing or unexpected names.
        """
        if state_dict.keys() != self.masters.keys():
            raise ValueError(f"names that do not match: {sorted(state_dict.keys() ^ self.masters.keys())}")
        # TODO 7.6 carry gradients up and weights down
        # BEGIN SOLUTION
        for name, master in self.masters.items():
            master.copy_(state_dict[name])
        self.copy_masters_to_model()
        # END SOLUTION


def measure_bytes(
    model: nn.Module, optimizer: Optimizer, forward: Callable[[], Tensor] | None = None
) -> dict[str, int]:
    """What a training holds in memory now, in bytes, counted tensor by tensor.

    Args:
        model: its parameters are "weights", its gradients count under "gradients".
        optimizer: parameters that are not the model's are "masters"; their gradients count too. The tensors
            of its state are "moments" (single numbers, such as step counts, are left out).
        forward: computes a loss; what its graph keeps for the backward pass, weights aside, is "activations".

    Returns:
        {"weights", "masters", "gradients", "moments", "activations"}: bytes.
    """
    weights = list(model.parameters())
    own = {id(param) for param in weights}
    masters = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in own]
    grads = [param.grad for param in weights + masters if param.grad is not None]
    moments = [
        t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor) and t.dim() > 0
    ]
    storages: dict[int, int] = {}
    if forward is not None:
        weight_storages = {param.untyped_storage().data_ptr() for param in weights}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weight_storages:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = forward()
        del loss  # only now may the memory be used again: until here no address counts twice
    named = {"weights": weights, "masters": masters, "gradients": grads, "moments": moments}
    return {name: sum(t.nbytes for t in tensors) for name, tensors in named.items()} | {
        "activations": sum(storages.values())
    }


def _cast(value: object, dtype: torch.dtype) -> object:
    """Floating-point tensors in the dtype, also in tuples; everything else as it is."""
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype) for item in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _cast_buffers(model: nn.Module, dtype: torch.dtype, stay: set[int]) -> None:
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and id(buffer) not in stay:
                setattr(module, name, buffer.to(dtype))
