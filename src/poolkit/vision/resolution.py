"""A network at the resolution of its input: strides removed, and dilation in their place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import PoolError, PoolTypeError, PoolValueError
from ..reductions import Lp, Max, Mean, Min, Reduction, Sum, activated, inner_of
from ..windows import Sliding
from .convolution import ConvPool2d, window_of
from .multiscale import ASPP, PyramidPool2d
from .registry import POOLS

__all__ = ["keep_resolution"]

# What is known of a tensor: for each axis, by how much more densely it lies than it did before, or
# () where it lies as it did. None is a tensor without a grid that could: a number, a size, or the
# bins of an adaptive pooling, which go with any map.
Grid = tuple[int, ...] | None
UNTOUCHED: Grid = ()


class _Flat(tuple[int, ...]):
    """The grid of channels and positions in one line, whose length depends on it."""


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
OURS = ("poolkit.nn.", "poolkit.vision.")
STANDARD = ("torch.nn.modules.pooling", "poolkit.nn.standard")
POINTWISE = {
    f"torch.nn.modules.{room}"
    for room in (
        "activation", "batchnorm", "dropout", "instancenorm", "linear", "normalization",
        "channelshuffle",
    )
}  # fmt: skip
OF_ANY_LENGTH = ("torch.nn.modules.activation", "torch.nn.modules.dropout")
MIXES = {"linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "batch_norm", "layer_norm"}
SIZES = {"getattr", "size", "dim", "numel", "len", "__len__", "ndimension", "stride"}
REDUCTIONS = {"mean", "sum", "amax", "amin", "max", "min", "std", "var", "logsumexp", "norm"}
RESIZES = ("interpolate", "upsample")
SPATIAL = {"pad", "unfold", "fold", "pixel_shuffle", "pixel_unshuffle", "grid_sample", "roll"}


def keep_resolution(
    model: nn.Module,
    example: Any = None,
    *,
    convolutions: bool = False,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Turns the strides of poolings into dilation of all that follows: the same values, densely.

    Each pooling gets stride 1. Each convolution and pooling behind it gets its dilation and
    padding times the product of the strides removed before it, so that it sees the same
    positions of the input as before. With strides of product s,
    ``model(x) == keep_resolution(model)(x)[..., ::s, ::s]``, at the borders too: padding is scaled
    with the dilation, so that what was padding for a value is padding still, and ``ceil_mode``
    becomes the padding behind that it stands for. The results of max are the same bits, sums may
    differ in their last one. The weights are the same; time and memory grow by s².

    What is learned on such a map sees more positions: a batch norm in training, and any norm or
    pooling over the whole map, take their statistics from all of them, not every s-th. Adaptive
    and global poolings may therefore follow, with other values.

    Source: Holschneider, Kronland-Martinet, Morlet and Tchamitchian, "A real-time algorithm for
    signal analysis with the help of the wavelet transform", 1989 (à trous); Chen, Papandreou,
    Kokkinos, Murphy and Yuille, "Semantic Image Segmentation with Deep Convolutional Nets and
    Fully Connected CRFs", 2015; Yu and Koltun, "Multi-Scale Context Aggregation by Dilated
    Convolutions", 2016.

    Args:
        model: a network or a part of one, with poolings as modules.
        example: an input (or a tuple of inputs), with which the order of the modules is found by
            running the model once in eval mode. Without one it is traced by ``torch.fx``, which
            does not follow a forward that depends on values or shapes.
        convolutions: whether strided convolutions lose their stride, too. A stride that stays
            makes the map smaller as before, and s does not count it.
        filter_fn: called as ``filter_fn(module, name)``; a stride is removed only if it is true.
        inplace: whether to change `model` itself instead of a copy. The modules of poolings may
            be replaced, so use what is returned.

    Returns:
        The model. Its `state_dict` has the same keys and values.

    Raises:
        PoolTypeError: if `model` is no module.
        PoolValueError: with the name of the module, if the order cannot be traced; if maps of
            different resolution meet, or one module runs at two; if a linear layer depends on
            the size of the map; and for what has no dilated form: positions (`return_indices`) and
            unpooling, pools called as functions, padding by reflection, upsampling by a factor.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3))
    >>> dense, x = keep_resolution(model), torch.rand(1, 1, 16, 16)
    >>> dense[1].stride, dense[2].dilation, dense(x).shape
    (1, (2, 2), torch.Size([1, 2, 9, 9]))
    >>> torch.allclose(model(x), dense(x)[..., ::2, ::2])
    True
    """
    if not isinstance(model, nn.Module):
        raise PoolTypeError(
            f"a model is a torch.nn.Module, got {type(model).__name__}", "Give the module"
        )
    # In a holder, so that a model that is a single pooling can be replaced too.
    holder = nn.Sequential(model if inplace else copy.deepcopy(model))
    follow = _Follow(holder, convolutions, filter_fn)
    if example is None:
        _trace(holder, follow)
    else:
        _run(holder, follow, example if isinstance(example, tuple) else (example,))
    follow.apply()
    return holder[0]


# --- in which order modules run ------------------------------------------------------------------


def _is_leaf(module: nn.Module) -> bool:
    """What is followed as a whole, not through its forward."""
    home = type(module).__module__
    if isinstance(module, CONVOLUTIONS) and not isinstance(module, ConvPool2d):
        # A subclass with a forward of its own may do anything with its stride.
        return any(type(module).forward is kind.forward for kind in CONVOLUTIONS)
    if home.startswith(OURS):
        return True
    return home.startswith("torch.nn.modules.") and not isinstance(
        module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    )


class LeafTracer(fx.Tracer):
    """Traces a model into its layers, and poolkit's modules and torch's are not looked into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_leaf(m)


def _trace(holder: nn.Sequential, follow: _Follow) -> None:
    try:
        graph = LeafTracer().trace(holder)
    except PoolError:
        raise
    except Exception as error:
        text = next(iter(str(error).strip().splitlines()), "")
        raise PoolValueError(
            f"the order in which the modules of {type(holder[0]).__name__} run cannot be traced "
            f"({type(error).__name__}: {text})",
            "Give an example input: keep_resolution(model, x)",
        ) from None
    grids: dict[fx.Node, Grid] = {}

    def of(*values: Any) -> list[Grid]:
        return [grids.get(v) for v in pytree.tree_leaves(values) if isinstance(v, fx.Node)]

    for node in graph.nodes:
        if node.op == "placeholder":
            grids[node] = UNTOUCHED
        elif node.op == "call_module":
            module = holder.get_submodule(node.target)
            grids[node] = follow.module(module, of(node.args, node.kwargs))
        elif node.op in ("call_function", "call_method"):
            name = node.target if node.op == "call_method" else node.target.__name__
            grids[node] = follow.function(name, of(node.args, node.kwargs), node.args, node.kwargs)


class _Watch(TorchFunctionMode):
    """Follows the tensors of a run; what happens inside a leaf is the leaf's."""

    def __init__(self, follow: _Follow) -> None:
        super().__init__()
        self.follow = follow
        self.grids: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.inside = 0

    def of(self, *values: Any) -> list[Grid]:
        leaves = pytree.tree_leaves(values)
        return [self.grids.get(v) for v in leaves if isinstance(v, torch.Tensor)]

    def note(self, result: Any, grid: Grid) -> None:
        for value in pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.grids[value] = grid

    def enter(self, module: nn.Module, args: Any) -> None:
        self.inside += 1

    def leave(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        self.inside -= 1
        if not self.inside:
            self.note(result, self.follow.module(module, self.of(args, kwargs)))

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self.inside and any(isinstance(v, torch.Tensor) for v in pytree.tree_leaves(result)):
            name = getattr(func, "__name__", str(func)).partition(".")[0]
            grid = self.follow.function(name, self.of(args, kwargs), args, kwargs)
            self.note(result, grid)
        return result


def _run(holder: nn.Sequential, follow: _Follow, inputs: tuple[Any, ...]) -> None:
    watch = _Watch(follow)
    for value in pytree.tree_leaves(inputs):
        # What has no room for a map is a condition: a time, a class, an embedding.
        if isinstance(value, torch.Tensor) and max(value.shape[2:], default=1) > 1:
            watch.note(value, UNTOUCHED)
    modes = [(module, module.training) for module in holder.modules()]
    handles = []
    for module, _ in modes:
        if _is_leaf(module):
            handles.append(module.register_forward_pre_hook(watch.enter))
            handles.append(module.register_forward_hook(watch.leave, with_kwargs=True))
    holder.eval()
    try:
        with torch.no_grad(), watch:
            holder[0](*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training


# --- what becomes of the maps --------------------------------------------------------------------


class _Follow:
    """Follows the grids through modules and functions, and notes what is to be changed.

    Nothing is changed before all has been followed, so a refusal leaves the model as it was.
    """

    def __init__(
        self,
        holder: nn.Sequential,
        convolutions: bool,
        filter_fn: Callable[[nn.Module, str], bool] | None,
    ) -> None:
        self.holder = holder
        self.convolutions = convolutions
        self.filter_fn = filter_fn
        self.names = {id(m): name.partition(".")[2] for name, m in holder.named_modules()}
        self.ran: dict[int, tuple[int, ...]] = {}
        self.changes: dict[int, Callable[[], None]] = {}

    def apply(self) -> None:
        for change in self.changes.values():
            change()

    def where(self, module: nn.Module) -> str:
        name = self.names.get(id(module), "")
        return f"{name} ({type(module).__name__})" if name else type(module).__name__

    def wanted(self, module: nn.Module) -> bool:
        return self.filter_fn is None or bool(
            self.filter_fn(module, self.names.get(id(module), ""))
        )

    def join(self, where: str, grids: Iterable[Grid]) -> Grid:
        joined: Grid = None
        for grid in grids:
            if grid is None:
                continue
            if joined is not None and _ones(joined) != _ones(grid):
                a, b = _by(joined), _by(grid)
                raise PoolValueError(
                    f"maps of different resolution meet at {where}: strides of {a} were removed "
                    f"before the one, of {b} before the other",
                    "Let filter_fn, or convolutions=, remove the strides of both branches or of "
                    "neither",
                )
            joined = grid if joined is None or len(grid) > len(joined) else joined
        return joined

    def module(self, module: nn.Module, grids: list[Grid]) -> Grid:
        where = self.where(module)
        grid = self.join(where, grids)
        if isinstance(grid, _Flat):
            if not type(module).__module__.startswith(OF_ANY_LENGTH) and not isinstance(
                module, (nn.Identity, nn.Flatten)
            ):
                raise _depends_on_size(where)
            return grid
        if isinstance(module, CONVOLUTIONS):
            return self._convolution(module, grid)
        found = _pooling(module)
        if found is not None:
            return self._pool(module, grid, *found)
        if _has_fixed_output(module):
            return None
        dense = bool(grid and max(grid) > 1)
        home, kind = type(module).__module__, type(module).__name__
        if isinstance(module, nn.Upsample) and module.size is not None:
            return None
        if not dense:
            if home.startswith(OURS) and _strides(module) and self.wanted(module):
                raise PoolValueError(
                    f"the stride of {where} cannot be removed",
                    "Use poolkit.nn.Pool(poolkit.Sliding(...), reduction), or leave it out by "
                    "filter_fn",
                )
            return grid
        assert grid is not None
        if isinstance(module, nn.Flatten):
            return _Flat(grid) if module.start_dim in (0, 1) else grid
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
            raise _depends_on_size(where)
        if home in POINTWISE or isinstance(module, PyramidPool2d):
            return grid
        if isinstance(module, ASPP):  # its convolutions lie beside each other
            for part in module.modules():
                if isinstance(part, nn.Conv2d):
                    self._convolution(part, grid)
            return grid
        if kind.startswith(("ZeroPad", "ConstantPad")):
            self._once(module, grid, lambda: _scale_constant_pad(module, grid))
            return grid
        raise PoolValueError(
            f"{where} has no dilated form, and strides of {_by(grid)} were removed before it",
            "Leave it out of the model that is given, or keep the strides before it by filter_fn",
        )

    def function(self, name: str, grids: list[Grid], args: Any, kwargs: Any) -> Grid:
        if name in SIZES:
            return None
        first = grids[0] if grids else None
        dense = bool(first and max(first) > 1)
        if name in MIXES and any(isinstance(grid, _Flat) for grid in grids):
            raise _depends_on_size(f"the call of {name}")
        if name.startswith(RESIZES):
            size = kwargs.get("size", args[1] if len(args) > 1 else None)
            if size is not None:
                return None
        elif "pool" in name:
            return self._pool_function(name, first, args, kwargs)
        elif name == "flatten" and dense:
            start = kwargs.get("start_dim", args[1] if len(args) > 1 else 0)
            return _Flat(first or ()) if start in (0, 1) else first
        elif name in ("view", "reshape") and dense:
            sizes = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
            return _Flat(first or ()) if len(sizes) < 3 else first
        elif name in REDUCTIONS and _over_space(args, kwargs):
            return None
        elif name in ("getitem", "__getitem__") and dense:
            self._check_index(args[1])
            return first
        if dense and (name in SPATIAL or name.startswith((*RESIZES, "conv"))):
            assert first is not None
            raise PoolValueError(
                f"{name} is called as a function on a map before which strides of {_by(first)} "
                "were removed, and cannot be changed",
                "Make it a module, keep the strides before it by filter_fn, or leave it out of "
                "the model that is given",
            )
        return self.join(f"the call of {name}", grids)

    def _pool_function(self, name: str, grid: Grid, args: Any, kwargs: Any) -> Grid:
        if name.startswith(("adaptive", "global")) or (
            name == "pool" and not str(args[1]).startswith("Sliding")
        ):
            return None
        stride = kwargs.get("stride", args[2] if len(args) > 2 else None)
        if set(pytree.tree_leaves(stride)) == {1} and not (grid and max(grid) > 1):
            return grid
        raise PoolValueError(
            f"{name} is called as a function, whose stride and dilation cannot be changed",
            "Make it a module: poolkit.nn has one for each pooling",
        )

    def _check_index(self, index: Any) -> None:
        entries = index if isinstance(index, tuple) else (index,)
        behind = entries[entries.index(Ellipsis) + 1 :] if Ellipsis in entries else entries[2:]
        if any(entry != slice(None) for entry in behind):
            raise PoolValueError(
                f"positions {index} are taken of a map that now has more of them",
                "Leave this out of the model that is given",
            )

    def _once(self, module: nn.Module, grid: tuple[int, ...], change: Callable[[], None]) -> None:
        """Notes a change, for a module that may run several times, at one resolution."""
        before = self.ran.setdefault(id(module), grid)
        if _ones(before) != _ones(grid):
            raise PoolValueError(
                f"{self.where(module)} runs several times, behind strides of {_by(before)} and "
                f"of {_by(grid)}",
                "Give each call a module of its own",
            )
        self.changes[id(module)] = change

    def _convolution(self, conv: Any, grid: Grid) -> Grid:
        rank = len(conv.kernel_size)
        pools = self.convolutions or isinstance(conv, ConvPool2d)
        remove = pools and max(conv.stride) > 1 and self.wanted(conv)
        removed = _of_rank(grid, rank, self.where(conv))
        stride = tuple(conv.stride) if remove else (1,) * rank
        if max(removed) > 1 and conv.padding_mode != "zeros":
            raise PoolValueError(
                f"{self.where(conv)} pads by padding_mode={conv.padding_mode!r}, which has no "
                "dilated form",
                "Only zeros do: keep the strides before it by filter_fn",
            )
        if isinstance(conv.padding, str):
            totals = [(k - 1) * d for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
            if conv.padding == "same" and max(removed) > 1 and any(t % 2 for t in totals):
                raise PoolValueError(
                    f"{self.where(conv)} with padding='same' and an even kernel pads its sides by "
                    "different amounts, which a convolution cannot scale",
                    "Pad before it, with torch.nn.ZeroPad2d",
                )

        def change() -> None:
            conv.dilation = _times(conv.dilation, removed)
            if not isinstance(conv.padding, str):
                conv.padding = _times(conv.padding, removed)
            if remove:
                conv.stride = (1,) * rank

        self._once(conv, removed, change)
        return _result(grid, _times(removed, stride))

    def _pool(
        self, module: nn.Module, grid: Grid, window: Sliding, reduction: Reduction, rank: int
    ) -> Grid:
        where = self.where(module)
        rank = rank or len(grid or ()) or 2
        removed = _of_rank(grid, rank, where)
        kernel, strides, dilation = window.sizes(rank)
        remove = max(strides) > 1 and self.wanted(module)
        if not remove and max(removed) == 1:
            self._once(module, removed, lambda: None)
            return _result(grid, removed)
        if getattr(module, "return_indices", False):
            raise PoolValueError(
                f"{where} returns positions, which are those of another map once strides are "
                "removed",
                "Set return_indices=False, and leave the unpooling out",
            )
        sides = _sides(window, kernel, strides, dilation, where)
        pads = tuple(
            (before * by, after * by) for (before, after), by in zip(sides, removed, strict=True)
        )
        reduction = _without_hanging(reduction, window, sides, where)
        dense = Sliding(
            _one(kernel),
            1 if remove else _one(strides),
            pads,
            _one(_times(dilation, removed)),
        )
        replacement = _same_class(module, dense, rank) or _as_pool(module, dense, reduction, where)
        self._once(module, removed, lambda: self._replace(module, replacement))
        return _result(grid, _times(removed, strides if remove else (1,) * rank))

    def _replace(self, module: nn.Module, replacement: nn.Module) -> None:
        replacement.training = module.training
        for parent in list(self.holder.modules()):
            for key, child in parent._modules.items():
                if child is module:
                    parent._modules[key] = replacement


def _depends_on_size(where: str) -> PoolValueError:
    return PoolValueError(
        f"{where} depends on the number of positions, of which there are more once strides are "
        "removed",
        "Put an adaptive pooling before it, or leave it out of the model that is given",
    )


# --- grids ---------------------------------------------------------------------------------------


def _ones(grid: tuple[int, ...]) -> tuple[int, ...]:
    """All that lie as they did are alike, whatever their rank."""
    return grid if grid and max(grid) > 1 else ()


def _by(grid: tuple[int, ...]) -> str:
    return str(_one(grid) if grid else 1)


def _one(values: Sequence[int]) -> Any:
    return values[0] if len(set(values)) == 1 else tuple(values)


def _times(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    return tuple(x * y for x, y in zip(a, b, strict=True))


def _of_rank(grid: Grid, rank: int, where: str) -> tuple[int, ...]:
    if not grid or max(grid) == 1:
        return (1,) * rank
    if len(grid) != rank:
        raise PoolValueError(
            f"{where} has {rank} spatial axes, and strides were removed from a map of {len(grid)}",
            "Leave it out of the model that is given",
        )
    return grid


def _result(before: Grid, removed: tuple[int, ...]) -> Grid:
    """Bins stay bins until a stride is removed behind them."""
    return None if before is None and max(removed) == 1 else removed


def _over_space(args: Any, kwargs: Any) -> bool:
    """Whether a call of a reduction leaves no spatial axis."""
    if len(args) > 1 and not isinstance(args[1], (int, tuple, list)):
        return False  # the larger of two tensors
    dims = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
    axes = set(pytree.tree_leaves(dims))
    return not axes or len(axes - {0, 1}) > 1


# --- windows -------------------------------------------------------------------------------------


def _pooling(module: nn.Module) -> tuple[Sliding, Reduction, int] | None:
    """The window, the reduction and the rank of a pooling that slides; rank 0 is not known."""
    home, name = type(module).__module__, type(module).__name__
    if home not in STANDARD:
        return None
    given: Any = module
    window = window_of(module)
    if name == "Pool":
        if window is None:
            return None
        return window, given.reduction, given.ndim or window.ndim or 0
    kind, rank = name[:-2], name[-2]
    if kind.startswith(("Adaptive", "Global", "Fractional", "MaxUnpool")) or rank not in "123":
        return None
    reduction: Reduction
    if kind.endswith("AvgPool"):
        reduction = Mean(given.count_include_pad, getattr(given, "divisor_override", None))
    elif kind == "LPPool":
        reduction = Lp(float(given.norm_type))
    else:
        reduction = {"MinPool": Min(), "SumPool": Sum()}.get(kind, Max())
    if kind.startswith(("ReLU", "Sigmoid")):
        reduction = activated(reduction, "ReLU()" if kind.startswith("ReLU") else "Sigmoid()")
    assert window is not None
    return window, reduction, int(rank)


def _has_fixed_output(module: nn.Module) -> bool:
    """Whether the number of its outputs does not depend on that of its inputs."""
    home, name = type(module).__module__, type(module).__name__
    if home in STANDARD:
        return name.startswith(("Adaptive", "Global")) or name == "Pool"
    return any(entry.kind == "global" for entry in POOLS.values() if entry.module is type(module))


def _strides(module: Any) -> bool:
    strides = pytree.tree_leaves(getattr(module, "stride", 1))
    return any(isinstance(stride, int) and stride > 1 for stride in strides)


def _sides(
    window: Sliding,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    where: str,
) -> list[tuple[int, int]]:
    """The padding before and behind, for a window that never hangs over."""
    rank = len(kernel)
    pads = window.pads(rank)
    if pads is None and max(strides) > 1:
        raise PoolValueError(
            f"the padding='same' of {where} depends on the size of its input",
            "Give the padding as integers",
        )
    sides = []
    for axis in range(rank):
        most = (kernel[axis] - 1) * dilation[axis]  # the reach of a window less one
        before, after = pads[axis] if pads is not None else (most // 2, most - most // 2)
        if window.ceil_mode:
            # The last window may hang over by a stride less one, and starts inside the input.
            after = max(after, min(after + strides[axis] - 1, most))
        sides.append((before, after))
    return sides


def _without_hanging(
    reduction: Reduction, window: Sliding, sides: Sequence[tuple[int, int]], where: str
) -> Reduction:
    """A mean whose divisor counts what it did: padding, but never what a window hangs over."""
    mean = inner_of(reduction)
    if not (window.ceil_mode and isinstance(mean, Mean)):
        return reduction
    pads = window.pads(len(sides))
    if not mean.count_include_pad or mean.divisor is not None or pads == tuple(sides):
        return reduction
    if any(side for pair in pads or () for side in pair):
        raise PoolValueError(
            f"{where} with ceil_mode counts its padding and not what hangs over it, and both "
            "become padding",
            "Set count_include_pad=False",
        )
    plain = Mean(count_include_pad=False)
    return plain if mean is reduction else activated(plain, reduction.activation)  # type: ignore[attr-defined]


def _same_class(module: Any, window: Sliding, rank: int) -> nn.Module | None:
    """A copy of the module with another window, where its class can say it."""
    kernel, stride, dilation = window.sizes(rank)
    pads = window.pads(rank) or ()
    halves = [k // 2 for k in kernel]  # torch's limit, whatever the dilation
    if type(module).__name__ == "Pool" or any(
        before != after or before > half for (before, after), half in zip(pads, halves, strict=True)
    ):
        return None
    can_dilate, can_pad = hasattr(module, "dilation"), hasattr(module, "padding")
    if (max(dilation) > 1 and not can_dilate) or (max(max(pads)) > 0 and not can_pad):
        return None
    same = copy.copy(module)
    same.stride, same.ceil_mode = _one(stride), False
    if can_dilate:
        same.dilation = _one(dilation)
    if can_pad:
        same.padding = _one([before for before, _ in pads])
    same_class: nn.Module = same
    return same_class


def _as_pool(module: nn.Module, window: Sliding, reduction: Reduction, where: str) -> nn.Module:
    from ..nn.standard import Pool  # poolkit.nn imports this room

    if isinstance(reduction, Lp) and type(module).__module__.startswith("torch."):
        raise PoolValueError(
            f"{where} is torch's, which takes norms by other rules than a dilated one would",
            "Use poolkit.nn.LPPool2d, which takes |x|",
        )
    return Pool(window, reduction, ndim=getattr(module, "ndim", None))


def _scale_constant_pad(module: Any, grid: tuple[int, ...]) -> None:
    """Its padding is (before, after) of the last axis first."""
    pairs = [by for by in reversed(grid) for _ in range(2)]
    module.padding = _times(module.padding, pairs[: len(module.padding)])
