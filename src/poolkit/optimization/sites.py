"""Where a module hangs in a model, and putting another one there."""

from __future__ import annotations

import inspect as signatures
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from poolkit.inspection.poolkit_calls import is_poolkits

#: torch's pooling classes, by name; poolkit.nn has classes of the same names.
POOLING_CLASSES: dict[str, type[nn.Module]] = {
    name: getattr(nn, name)
    for kind in (
        "MaxPool", "AvgPool", "LPPool", "AdaptiveMaxPool", "AdaptiveAvgPool",
        "FractionalMaxPool", "MaxUnpool",
    )
    for name in (f"{kind}{n}d" for n in (1, 2, 3))
    if hasattr(nn, name)
}  # fmt: skip

_WRAPPERS = {
    "DataParallel",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "OptimizedModule",  # what torch.compile returns
}


@dataclass(frozen=True)
class Swap:
    """One module and its replacement, at every place of the model where the module hangs.

    A module may hang under several names (shared): the replacement then hangs under all of
    them, so that they still share it. Assigning to a key that exists keeps the order of the
    parent's modules, and what has state of its own is not swapped, so names and state_dict stay as
    they were.
    """

    original: nn.Module
    replacement: nn.Module
    sites: tuple[tuple[nn.Module, str], ...]

    def apply(self) -> None:
        self._put(self.original, self.replacement)

    def undo(self) -> None:
        self._put(self.replacement, self.original)

    def _put(self, old: nn.Module, new: nn.Module) -> None:
        new.training = old.training
        for parent, key in self.sites:
            # Only where it still hangs: what someone has put there since is theirs.
            if parent._modules.get(key) is old:
                parent._modules[key] = new


def sites_of(model: nn.Module, module: nn.Module) -> tuple[tuple[nn.Module, str], ...]:
    """Every (parent, key) under which ``module`` hangs in ``model``."""
    return tuple(
        (parent, key)
        for parent in model.modules()
        for key, child in parent._modules.items()
        if child is module
    )


def reason_not_to_swap(model: nn.Module, module: nn.Module) -> str:
    """Why a pooling module that ran cannot be swapped safely; empty if it can."""
    if is_poolkits(module):
        return "is poolkit's already"
    return reason_not_to_replace(model, module)


def reason_not_to_replace(model: nn.Module, module: nn.Module) -> str:
    """Why no other module can be put in the place of one that ran; empty if one can."""
    cls = type(module)
    if not is_poolkits(module) and POOLING_CLASSES.get(cls.__name__) is not cls:
        base = next((b.__name__ for b in cls.__mro__ if b in POOLING_CLASSES.values()), "")
        return f"{cls.__name__} is a class of its own over {base} and may do more than {base}"
    return reason_not_to_move(model, module)


def reason_not_to_move(model: nn.Module, module: nn.Module) -> str:
    """Why nothing can be put in the place of a module, whatever it is; empty if something can."""
    if module is model:
        return "the model is this pooling itself; there is no parent to swap it in"
    if "forward" in vars(module):
        return "its forward was replaced on the object"
    if _has_hooks(module):
        return "it has hooks, which a new module would not have"
    if not is_poolkits(module) and (added := _added_to(module)):
        return f"it has {added!r} of its own, which a new module would not have"
    sites = sites_of(model, module)
    if not sites:
        return "it is not registered as a sub-module, so nothing can be put in its place"
    for parent in model.modules():
        name = wrapper_name(parent)
        if name and any(child is module for child in parent.modules()):
            return f"it is inside {name}, which has its own copy or view of the modules"
    return ""


def wrapper_name(model: nn.Module) -> str:
    """The name of the class that wraps a model so that its modules cannot be swapped, or empty."""
    if isinstance(model, torch.jit.ScriptModule):
        return "ScriptModule"
    return next((b.__name__ for b in type(model).__mro__ if b.__name__ in _WRAPPERS), "")


def scripted_part(model: nn.Module) -> str:
    """The first ScriptModule in a model, in which no call can be seen; empty if there is none."""
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            return f"layer {name!r}" if name else "the model"
    return ""


def replacement_for(module: nn.Module) -> nn.Module | None:
    """poolkit's module with the arguments and the mode of a torch pooling module, or None."""
    import poolkit.nn

    cls = getattr(poolkit.nn, type(module).__name__, None)
    if cls is None:
        return None
    new: nn.Module = cls(**constructor_arguments(module))
    new.training = module.training
    return new


def constructor_arguments(module: nn.Module) -> dict[str, Any]:
    """The arguments that built a torch pooling module, read back from its attributes.

    >>> constructor_arguments(nn.AdaptiveAvgPool2d(7))
    {'output_size': 7}
    """
    return {name: getattr(module, name) for name in _parameters_of(module) if name != "self"}


def _parameters_of(module: nn.Module) -> Iterable[str]:
    return signatures.signature(type(module).__init__).parameters


def _added_to(module: nn.Module) -> str:
    """The first parameter, buffer or module that torch's class does not have; empty if none."""
    held = (*module._parameters, *module._buffers, *module._modules)
    return next((name for name in held if name not in _parameters_of(module)), "")


def _has_hooks(module: nn.Module) -> bool:
    return any(
        getattr(module, registry, None)
        for registry in (
            "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
            "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
            "_load_state_dict_post_hooks",
        )
    )  # fmt: skip
