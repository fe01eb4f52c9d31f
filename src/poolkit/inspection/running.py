"""Which module of a model is running."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["LayerStack"]


class LayerStack:
    """The modules that have begun and not ended.

    When one raises, `current` says which it was.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(module): name for name, module in model.named_modules()}
        self.stack: list[nn.Module] = []

    @property
    def current(self) -> str:
        """The innermost module, as messages name it."""
        if not self.stack:
            return "the model"
        module = self.stack[-1]
        name = self.names.get(id(module), "")
        return f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__

    @contextmanager
    def following(self) -> Iterator[None]:
        """Looks at calls of modules. The hooks are global, so the model's own are not touched."""

        def leave(*_: Any) -> None:
            self.stack.pop()

        modules = nn.modules.module
        handles = [
            modules.register_module_forward_pre_hook(lambda module, _: self.stack.append(module)),
            modules.register_module_forward_hook(leave),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
