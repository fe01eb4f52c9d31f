"""What modules over windows have in common: where the window is."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["Placed", "Windowed"]


class Windowed(nn.Module):
    """A module whose window has a size, a stride (by default the size) and padding."""

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride if stride is not None else kernel_size
        self.padding = padding

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class Placed(Windowed):
    """A module whose options begin with those of `poolkit.Sliding`, by the same names."""

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        self.dilation = dilation
        self.ceil_mode = ceil_mode

    @property
    def place(self) -> tuple[Any, ...]:
        """The arguments of `Sliding`, in its order."""
        return self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
