"""Ragged windows: sequences, bags and groups of any length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array, arrays_of
from ..errors import PoolTypeError, PoolValueError, dtype_name, is_torch_tensor
from .base import ReceptiveField, Spans, Window

__all__ = ["Rows", "Segments", "laid_out"]

FORMS = ("offsets", "lengths", "mask", "ids")
RULES = "'zero', 'nan', 'error' or a number"


@dataclass(frozen=True)
class Rows:
    """What `Segments` makes of an input: rows in which every segment is one run.

    Attributes:
        values: (rows, *features).
        begin, count: the first row and the number of rows of each segment, 64-bit integers.
        weights: one number for each row, or None.
    """

    values: Array
    begin: np.ndarray
    count: np.ndarray
    weights: Array | None = None


def laid_out(begin: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All segments one after the other: of each row the segment, and where it is.

    >>> laid_out(np.array([0, 4, 4]), np.array([2, 0, 1]))
    (array([0, 0, 2]), array([0, 1, 4]))
    """
    owner = np.repeat(np.arange(len(count)), count)
    shift = begin - (np.cumsum(count) - count)
    return owner, shift[owner] + np.arange(len(owner))


class Segments(Window):
    """Rows that belong together: the words of a sentence, the clicks of a user, a bag of features.

    The same ragged data comes in many forms. One of them is named, and what `pool` returns is the
    same to the last bit, ``(segments, *features)``:

    ========================  ==========================  =========================================
    named                     x                           segment s
    ========================  ==========================  =========================================
    ``offsets`` (segments+1)  (rows, *features)           rows offsets[s] up to offsets[s + 1]
    ``ids`` (rows)            (rows, *features)           rows with the id s, in any order
    ``lengths`` (batch)       (batch, time, *features)    the first lengths[s] of x[s]
    ``mask`` (batch, time)    (batch, time, *features)    x[s] where the mask is true
    nothing                   a nested tensor of torch    its part s
    ========================  ==========================  =========================================

    Args:
        offsets: from 0 to the number of rows, ascending, one more than there are segments (what
            attention kernels call ``cu_seqlens``).
        lengths: rows of each sequence of a padded batch.
        mask: which rows of a padded batch are there: bools, or 0 and 1. Padding may be on the left,
            on the right, or anywhere.
        ids: to which segment each row belongs, from 0.
        num_segments: how many segments `ids` may name; by default as many as the largest.
        empty: the result of a segment without rows: "zero", "nan", a number, or "error".
        weights: a number for each row, in the shape of the ids, of the mask, or of the rows. Sums
            are of weighted rows, means divide by the sum of the weights and `SqrtN` by the root of
            the sum of their squares, a max or min is one of weighted rows, and for `Soft` weights
            say how often a row is seen. Tensors may be learned: they get a gradient.

    All of these may be lists, NumPy arrays or torch tensors; they are read when the window is made,
    and what lies on another device is copied from it.

    Raises:
        PoolValueError, PoolTypeError: for forms that contradict themselves; with `pool`, for an
            input that does not fit them.

    >>> import numpy as np, poolkit
    >>> x = np.array([[1.0], [2.0], [3.0], [10.0]])
    >>> poolkit.pool(x, poolkit.Segments(offsets=[0, 3, 3, 4]), "mean")
    array([[ 2.],
           [ 0.],
           [10.]])
    >>> poolkit.pool(x, poolkit.Segments(ids=[2, 0, 2, 0]), "max").ravel()
    array([10.,  0.,  3.])
    >>> poolkit.pool(x, poolkit.Segments(ids=[0, 0, 0, 1], weights=[1, 0, 3, 2]), "mean")
    array([[ 2.5],
           [10. ]])
    >>> padded = np.array([[[1.0], [2.0]], [[3.0], [0.0]]])
    >>> poolkit.pool(padded, poolkit.Segments(mask=[[True, True], [True, False]]), "sum").ravel()
    array([3., 3.])
    """

    def __init__(
        self,
        *,
        offsets: Any = None,
        lengths: Any = None,
        mask: Any = None,
        ids: Any = None,
        num_segments: int | None = None,
        empty: str | float = "zero",
        weights: Any = None,
    ) -> None:
        given = {"offsets": offsets, "lengths": lengths, "mask": mask, "ids": ids}
        named = [name for name in FORMS if given[name] is not None]
        if len(named) > 1:
            raise PoolTypeError(
                f"segments are given by {' and '.join(named)}", "Name one form; they say the same"
            )
        self.form = named[0] if named else None
        self.empty = _checked_rule(empty)
        self.num_segments = _checked_number(num_segments, self.form)
        self.weights = _checked_weights(weights)
        self.given = _checked(self.form, given[self.form]) if self.form else np.zeros(0, np.int64)
        if self.form == "ids" and self.num_segments is not None and len(self.given):
            largest = int(self.given.max())
            if largest >= self.num_segments:
                raise PoolValueError(
                    f"ids go up to {largest}, num_segments is {self.num_segments}",
                    f"Give num_segments={largest + 1} or more",
                )

    def __repr__(self) -> str:
        form = f"{self.form}=<{' x '.join(map(str, self.given.shape))}>" if self.form else ""
        rule = "" if self.empty == "zero" else f"empty={self.empty!r}"
        weights = "" if self.weights is None else "weights=<...>"
        return f"Segments({', '.join(filter(None, (form, rule, weights)))})"

    @property
    def ndim(self) -> int:
        return 1

    @property
    def dense(self) -> bool:
        """Whether x is a padded batch."""
        return self.form in ("lengths", "mask")

    def axes(self, shape: Sequence[int]) -> tuple[Spans, ...]:
        """The spans over an axis of rows, for the forms in which each segment is a run of them."""
        begin, count = self._runs(int(shape[0]))
        return (Spans(int(shape[0]), begin, count, 1, count),)

    def output_shape(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        return (self._segments(),)

    def receptive_field(
        self, shape: Sequence[int], before: Sequence[ReceptiveField] | None = None
    ) -> tuple[ReceptiveField, ...]:
        raise PoolTypeError("segments have no stride", "Ask a sliding window")

    def rows_of(self, x: Array) -> Rows:
        """`x` as rows, each segment a run of them. Rows are copied for ids that are not ascending
        and for a mask with holes only.

        Raises:
            PoolValueError, PoolTypeError: for an input that does not fit.
        """
        if is_torch_tensor(x) and x.is_nested:
            return self._rows_of_nested(x)
        if self.form is None:
            raise PoolTypeError(
                "segments of nothing: only a nested tensor says itself where its parts end",
                f"Give one of {', '.join(FORMS)}",
            )
        if self.dense:
            return self._rows_of_batch(x)
        if x.ndim < 1:
            raise PoolValueError("an input of rank 0 has no rows", "Give (rows, *features)")
        if self.form == "offsets":
            return Rows(x, *self._runs(x.shape[0]), self._weights_of((x.shape[0],)))
        return self._rows_of_ids(x)

    def _weights_of(self, shape: tuple[int, ...]) -> Array | None:
        """The weights in one row, if there are any."""
        if self.weights is None:
            return None
        if tuple(self.weights.shape) != shape:
            raise PoolValueError(
                f"weights of shape {tuple(self.weights.shape)} for rows of shape {shape}",
                "Give one for each row",
            )
        return self.weights.reshape(-1)

    def _segments(self) -> int:
        if self.form == "offsets":
            return len(self.given) - 1
        if self.form == "ids":
            known = int(self.given.max()) + 1 if len(self.given) else 0
            return known if self.num_segments is None else self.num_segments
        return len(self.given)

    def _runs(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        if self.form != "offsets":
            raise PoolTypeError(f"{self} are no runs of rows", "Use Segments.rows_of")
        if self.given[-1] != rows:
            raise PoolValueError(
                f"offsets end at {self.given[-1]}, there are {rows} rows",
                "The last offset is the number of rows",
            )
        return self.given[:-1], np.diff(self.given)

    def _rows_of_ids(self, x: Array) -> Rows:
        if len(self.given) != x.shape[0]:
            raise PoolValueError(
                f"there are {len(self.given)} ids for {x.shape[0]} rows", "Give one for each row"
            )
        segments = self._segments()
        count = np.bincount(self.given, minlength=segments).astype(np.int64)
        begin = np.cumsum(count) - count
        weights = self._weights_of((x.shape[0],))
        if (np.diff(self.given) < 0).any():
            order = np.argsort(self.given, kind="stable")
            x, weights = _taken(x, order), _taken(weights, order)
        return Rows(x, begin, count, weights)

    def _rows_of_batch(self, x: Array) -> Rows:
        if x.ndim < 2:
            raise PoolValueError(
                f"{self.form} are of a padded batch (batch, time, *features), got rank {x.ndim}",
                "Give offsets or ids for rows",
            )
        batch, time = x.shape[:2]
        values = x.reshape((batch * time, *x.shape[2:]))
        weights = self._weights_of((batch, time))
        first = np.arange(batch, dtype=np.int64) * time
        if self.form == "lengths":
            if len(self.given) != batch:
                raise PoolValueError(
                    f"there are {len(self.given)} lengths for a batch of {batch}",
                    "Give one for each sequence",
                )
            if batch and self.given.max() > time:
                raise PoolValueError(
                    f"a length of {self.given.max()} is more than the {time} rows of a sequence",
                    "Lengths count the rows that are there",
                )
            return Rows(values, first, self.given, weights)
        if self.given.shape != (batch, time):
            raise PoolValueError(
                f"the mask has shape {self.given.shape}, the batch {(batch, time)}",
                "Give one truth value for each row",
            )
        count = self.given.sum(axis=1, dtype=np.int64)
        start = self.given.argmax(axis=1) if time else np.zeros(batch, np.int64)
        behind = time - self.given[:, ::-1].argmax(axis=1) if time else start
        if (np.where(count > 0, behind - start, 0) == count).all():
            return Rows(values, first + start, count, weights)
        kept = np.flatnonzero(self.given)
        begin = np.cumsum(count) - count
        return Rows(_taken(values, kept), begin, count, _taken(weights, kept))

    def _rows_of_nested(self, x: Array) -> Rows:
        if self.form is not None:
            raise PoolTypeError(
                f"a nested tensor says itself where its parts end, and so does {self.form}",
                "Write Segments() for a nested tensor",
            )
        import torch

        if x.layout is not torch.jagged:
            parts = x.unbind()
            if not parts:
                raise PoolValueError("a nested tensor without parts has no shape", "Add parts")
            count = np.array([len(part) for part in parts], dtype=np.int64)
            weights = self._weights_of((int(count.sum()),))
            return Rows(torch.cat(parts), np.cumsum(count) - count, count, weights)
        offsets = _integers("offsets", x.offsets())
        lengths = x.lengths()
        count = np.diff(offsets) if lengths is None else _integers("lengths", lengths)
        if x._ragged_idx != 1:
            raise PoolTypeError(
                "the parts of this nested tensor are ragged along another axis than their first",
                "Transpose it back",
            )
        return Rows(x.values(), offsets[:-1], count, self._weights_of((len(x.values()),)))


def _checked(form: str, value: Any) -> np.ndarray:
    if form == "mask":
        return _checked_mask(value)
    numbers = _integers(form, value)
    if form == "offsets":
        if len(numbers) < 1 or numbers[0] != 0:
            start = f"start at {numbers[0]}" if len(numbers) else "are empty"
            raise PoolValueError(
                f"offsets {start}",
                "They start at 0 and end at the number of rows: one more than there are segments",
            )
        falls = np.flatnonzero(np.diff(numbers) < 0)
        if len(falls):
            at = int(falls[0])
            raise PoolValueError(
                f"offsets fall from {numbers[at]} to {numbers[at + 1]} at place {at + 1}",
                "Offsets ascend",
            )
    elif len(numbers) and numbers.min() < 0:
        at = int(numbers.argmin())
        raise PoolValueError(
            f"{form} must not be negative, got {numbers[at]} at place {at}",
            "Drop such rows first" if form == "ids" else "A sequence without rows has length 0",
        )
    return numbers


def _taken(x: Array | None, places: np.ndarray) -> Array | None:
    if x is None:
        return None
    xp = arrays_of(x)
    return xp.take(x, xp.index(places, x), 0)


def _checked_weights(weights: Any) -> Array | None:
    if weights is None:
        return None
    array: Any = weights if is_torch_tensor(weights) else np.asarray(weights)
    kind = array.is_floating_point() if is_torch_tensor(array) else array.dtype.kind == "f"
    if kind:
        return array
    if is_torch_tensor(array) or array.dtype.kind not in "iub":
        raise PoolTypeError(
            f"weights must be floating, got {dtype_name(array)}", "Convert them first"
        )
    return array.astype(np.float64)


def _as_numpy(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if is_torch_tensor(value) else np.asarray(value)


def _integers(form: str, value: Any) -> np.ndarray:
    array = _as_numpy(value)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise PoolTypeError(
            f"{form} must be integers in one row, got {dtype_name(array)} {array.shape}",
            "Give a list, an array or a tensor of integers",
        )
    return np.ascontiguousarray(array, dtype=np.int64)


def _checked_mask(value: Any) -> np.ndarray:
    if is_torch_tensor(value) and value.is_floating_point():
        value = value.float()  # NumPy has no bfloat16
    array = _as_numpy(value)
    if array.ndim != 2:
        raise PoolTypeError(
            f"a mask has the shape (batch, time), got {array.shape}", "Drop or add axes"
        )
    if array.dtype != np.bool_:
        if array.size and not np.isin(array, (0, 1)).all():
            raise PoolValueError(
                "a mask holds other values than 0 and 1",
                "Give bools: an additive mask, for instance, is mask == 0",
            )
        array = array != 0
    return np.ascontiguousarray(array)


def _checked_rule(empty: Any) -> str | float:
    if isinstance(empty, str):
        if empty in ("zero", "nan", "error"):
            return empty
    elif isinstance(empty, (int, float, np.number)) and not isinstance(empty, bool):
        return float(empty)
    raise PoolValueError(f"empty must be {RULES}, got {empty!r}", "Write one of them")


def _checked_number(number: Any, form: str | None) -> int | None:
    if number is None:
        return None
    if form != "ids":
        raise PoolTypeError(
            f"num_segments is for ids; {form or 'a nested tensor'} already says how many there are",
            "Drop it",
        )
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 0:
        raise PoolTypeError(
            f"num_segments must be an integer of 0 or more, got {number!r}", "Give the number"
        )
    return int(number)
