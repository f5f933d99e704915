"""Parameter groups: which parameters an optimizer gets, in which order, with which settings.

Holds ``create_optimizer`` (an optimizer by its name), ``configure_optimizer`` (from a model to its optimizer,
with decay where it belongs), the steps between them, and two tools for later: ``ownership_report`` (does the
optimizer still own the model's parameters?) and ``load_state_by_name`` (after positions have changed).

Run: ``python -m solutions.stage01_optimizers.lesson03_param_groups.run``.

Paper: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101.

Words: *settings* are what one parameter is trained with, ``{"lr": …, "weight_decay": …}``; a *group* is a
dict for torch.optim: ``params``, ``param_names`` and the settings that they share.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .groups import accepted_options, all_names, check_loadable, index_by_name, named_in_optimizer, unknown

Settings = dict[str, dict[str, Any]]  # parameter name → its settings

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
# Keys of a group that are not options of the optimizer; LR schedulers write initial_lr.
GROUP_KEYS = {"params", "param_names", "initial_lr"}


def create_optimizer(
    optimizer_type: str, params: Iterable, lr: float, weight_decay: float = 0.0, **kwargs: Any
) -> torch.optim.Optimizer:
    """Build the torch optimizer that a name stands for.

    ``lr``, ``weight_decay`` and ``kwargs`` are defaults: a group that states a value of its own keeps it.

    Args:
        optimizer_type: "adamw", "adam" or "sgd", in upper or lower case. "adam" adds λ·θ to the gradient
            (L2), "adamw" shrinks θ itself: they are two optimizers.
        params: parameters, or group dicts with the key "params". The dicts are not changed.
        lr: learning rate, >= 0.
        weight_decay: λ, >= 0.
        kwargs: any other option of that optimizer: betas, eps, momentum, nesterov, foreach, fused, …

    Raises:
        ValueError: unknown optimizer, or an option (in kwargs or in a group) that this one does not have; the
            message names the nearest known one. torch itself takes any key in a group, and ignores it.
    """
    params = [dict(item) if isinstance(item, dict) else item for item in params]
    in_groups = [key for item in params if isinstance(item, dict) for key in item if key not in GROUP_KEYS]
    options = [*kwargs, *in_groups]  # every option that the caller has named
    # TODO 3.1 build the optimizer that the name stands for
    # The table is OPTIMIZERS; accepted_options(cls) are the options that cls takes.
    # unknown(what, word, known) words both error messages.
    raise NotImplementedError("task 3.1: build the optimizer that the name stands for")


def trainable_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What there is to train: (name, parameter) pairs.

    * in the order of ``model.named_parameters()``, which is the same in every process;
    * a tensor with several names (tied weights) once, under the first of them;
    * without frozen parameters (``requires_grad=False``) and without buffers.

    Raises:
        ValueError: the model has no trainable parameter; the message says "trainable".
    """
    # TODO 3.2 list every trainable parameter once, in the model's order
    raise NotImplementedError("task 3.2: list every trainable parameter once, in the model's order")


def default_settings(model: nn.Module, lr: float, weight_decay: float) -> Settings:
    r"""The settings of each trainable parameter: the same lr for all, and decay by dimension.

    $$\lambda(\theta) = \lambda \text{ if } \mathrm{ndim}(\theta) \ge 2, \text{ else } 0$$

    Two and more dimensions: linear and convolution weights, embeddings (as in nanoGPT; minGPT left them out).
    One or none: biases, gains of any norm, scalar scales. The rule reads neither names nor types, so it knows
    a norm that somebody wrote yesterday. A gain stored as (1, 1, d) is a matrix to it: use an override.

    Returns:
        name → {"lr": …, "weight_decay": …}, in the order of ``trainable_parameters``. Always both keys: what
        a group leaves out, torch fills with the optimizer's default.
    """
    # TODO 3.3 decay matrices, and neither biases nor norm gains
    raise NotImplementedError("task 3.3: decay matrices, and neither biases nor norm gains")


def group_by_settings(model: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """Parameters with equal settings share a group: one group for each different settings, none empty.

    torch.optim updates the tensors of a group together: a group for each parameter would give the same
    numbers, more slowly.

    Args:
        model: gives the parameters and their order.
        settings: one entry for each trainable parameter; values are hashable (numbers, strings, tuples).

    Returns:
        Group dicts: "params", "param_names" (parallel, both in the model's order) and the settings. The order
        of the groups follows from the arguments alone, since a state_dict refers to parameters by position.
    """
    # TODO 3.4 group the parameters by their settings, and build the optimizer from the groups
    raise NotImplementedError("task 3.4: group the parameters by their settings, and build the optimizer from the groups")


def configure_optimizer(
    model: nn.Module,
    optimizer_type: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    overrides: dict[str, dict[str, Any]] | None = None,
    **kwargs: Any,
) -> torch.optim.Optimizer:
    """From a model to its optimizer: names → settings → groups → optimizer.

    Call it last: after the model is on its device, tied, resized and frozen as it will be trained.

    Args:
        model: every trainable parameter lands in exactly one group.
        optimizer_type, lr, weight_decay, kwargs: as in ``create_optimizer``; weight_decay only for matrices.
        overrides: settings for some parameters, see ``apply_overrides``: ``{"embedding": {"lr": 1e-4}}``.

    Raises:
        ValueError: no trainable parameter, unknown optimizer or option, or an override that matches nothing.
    """
    settings = default_settings(model, lr, weight_decay)
    if overrides:
        settings = apply_overrides(settings, model, overrides)
    # TODO 3.4 group the parameters by their settings, and build the optimizer from the groups
    raise NotImplementedError("task 3.4: group the parameters by their settings, and build the optimizer from the groups")


def name_matches(name: str, pattern: str) -> bool:
    """Whether the pattern is one or more neighbouring whole parts of the dotted name.

    "layers.1" matches "layers.1.weight" and "decoder.layers.1.mlp.bias", neither "layers.10.weight" nor
    "sublayers.1.weight".
    """
    # TODO 3.5 override the settings of the parameters that a pattern names
    raise NotImplementedError("task 3.5: override the settings of the parameters that a pattern names")


def apply_overrides(settings: Settings, model: nn.Module, overrides: dict[str, dict[str, Any]]) -> Settings:
    """Settings with the overrides put in; the argument is not changed.

    Args:
        settings: of ``default_settings``.
        model: knows the further names of tied tensors. A tensor answers to each of its names: with a tied
            head, "lm_head" means the embedding too.
        overrides: pattern → settings. An override changes what it names and leaves the rest. Where several
            match a parameter they are applied in the order written, so that the last one wins.

    Raises:
        ValueError: a pattern matches no trainable parameter; the message names the pattern.
    """
    settings = {name: dict(values) for name, values in settings.items()}
    names = all_names(model)
    for pattern, values in overrides.items():
        # TODO 3.5 override the settings of the parameters that a pattern names
        # matched: the keys of `settings` that the pattern means; names[key] are all names of that tensor.
        raise NotImplementedError("task 3.5: override the settings of the parameters that a pattern names")
        if not matched:
            raise ValueError(f"override {pattern!r} matches no trainable parameter of {type(model).__name__}")
    return settings


def ownership_report(optimizer: torch.optim.Optimizer, model: nn.Module) -> tuple[list[str], list[str]]:
    """What went apart since the optimizer was built: (missing, stale).

    ``step()`` writes to the tensor objects that the optimizer was given. A parameter put in the place of one
    of them later (a resized embedding, ``load_state_dict(assign=True)``, ``.to()`` on some devices) gets
    gradients and is never updated. So two parameters are the same if they are one object: an equal value,
    name or shape, even a shared storage, proves nothing.

    Returns:
        missing: names of the model's trainable parameters that no group holds, in the model's order.
        stale: names (``named_in_optimizer``) of tensors in the groups that are no parameter of the model. One
            that was frozen after the optimizer was built still belongs to the model, and is not stale.
    """
    # TODO 3.6 compare by identity what the model trains with what the optimizer holds
    raise NotImplementedError("task 3.6: compare by identity what the model trains with what the optimizer holds")


def load_state_by_name(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Load an optimizer's state (moments, step counts) by parameter name.

    torch's ``Optimizer.load_state_dict`` goes by position, and so gives a parameter its neighbour's moments
    where groups or modules have changed their order since. It also loads the settings (lr, …); here they stay
    those of ``optimizer``, since regrouped parameters have no saved group. Nothing regrouped? Use torch's.

    Args:
        optimizer: the new one; after an error it is as before.
        state_dict: what ``state_dict()`` of the old one gave; not changed, and no memory is shared with it.
            "state" is index → state, without an entry for a parameter that was never updated.

    Raises:
        ValueError: names are missing on either side, or a saved tensor has another shape than its parameter.
    """
    saved_index = index_by_name(state_dict)  # name → index in the saved state
    new_state_dict = optimizer.state_dict()
    new_index = index_by_name(new_state_dict)  # name → index in this optimizer
    saved = copy.deepcopy(state_dict["state"])  # torch would go on using, and changing, the saved tensors
    check_loadable(optimizer, saved, saved_index)
    # TODO 3.7 give every parameter the state that was saved under its name
    # state: index in this optimizer → state of the parameter
    raise NotImplementedError("task 3.7: give every parameter the state that was saved under its name")
    optimizer.load_state_dict({"state": state, "param_groups": new_state_dict["param_groups"]})


def check_ownership(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """ValueError where ``ownership_report`` finds something. Call it before the first step."""
    missing, stale = ownership_report(optimizer, model)
    if missing or stale:
        raise ValueError(
            f"the optimizer lacks {missing} of the model, and holds {stale} that the model has lost: "
            "build the optimizer after the model"
        )
