"""The k-th largest of millions of numbers, exactly, without sorting them or copying all of them."""

import math
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# What a processor keeps in its cache from one operation to the next.
PIECE_ELEMENTS = 2**16
# Of more elements than these a sample tells first about where the threshold is: one of so many, or so many of them.
FEW_ELEMENTS = 2**17
SAMPLE_STRIDE = 11
SAMPLE_ELEMENTS = 2**19
# Beyond so many standard deviations the threshold never is, but for tensors that repeat themselves.
SAMPLE_DEVIATIONS = 6


class Threshold(NamedTuple):
    """`value`, the k-th largest element, and `surplus`: how many more than k are at least as large."""

    value: float
    surplus: int


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """`tensors`, all of one shape, a part after the other: what belongs together in one tuple of views.

    On a device that is not the processor, and of tensors that do not lie in one piece of memory, all at once.
    """
    if all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors):
        return zip(*(tensor.view(-1).split(PIECE_ELEMENTS) for tensor in tensors))
    return iter([tensors])


def kth_largest(tensors: Collection[Tensor], k: int, by_size: bool = False) -> Threshold:
    """The `k`-th largest element of all `tensors` taken together, exactly; `by_size` the k-th largest |element|.

    A sample gives an interval that the threshold is in almost surely; elements
    above are counted, and only those inside are partitioned. Where it is not in
    the interval after all, all elements are.
    """
    total = sum(tensor.numel() for tensor in tensors)
    if total > FEW_ELEMENTS:
        above, near = above_and_within(tensors, *interval(tensors, k / total, by_size), by_size)
        if above < k <= above + near.numel():
            return kth_of(near, k - above)
    values = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    return kth_of(values.abs() if by_size else values, k)


def zero_last(values: Tensor, where: Tensor, count: int) -> int:
    """Set the last `count` of the elements of `values` at which the mask `where` holds to zero; returns how many."""
    values, where = torch.atleast_1d(values, where)
    last = tuple(index[max(0, len(index) - count) :] for index in where.nonzero(as_tuple=True))
    values[last] = 0
    return len(last[0])


def kth_of(values: Tensor, k: int) -> Threshold:
    """The `k`-th largest of `values`, one-dimensional."""
    value = kth_value(values, k)
    return Threshold(value, int(torch.count_nonzero(values >= value)) - k)


def kth_value(values: Tensor, k: int) -> float:
    """As `kth_of`, the value alone."""
    if is_array(values):
        # NumPy partitions in a tenth of the time of kthvalue.
        return float(np.partition(values.numpy(), values.numel() - k)[values.numel() - k])
    return float(values.kthvalue(values.numel() - k + 1).values)


def interval(tensors: Collection[Tensor], share: float, by_size: bool) -> tuple[float, float]:
    """Two numbers between which the element lies, almost surely, that `share` of all are at least as large as."""
    stride = max(SAMPLE_STRIDE, sum(tensor.numel() for tensor in tensors) // SAMPLE_ELEMENTS)
    # With no factor in common with the usual widths of a matrix, it meets all columns.
    while math.gcd(stride, 2 * 3 * 5 * 7) > 1:
        stride += 1
    sample = torch.cat([tensor.detach().reshape(-1)[::stride] for tensor in tensors])
    sample = sample.abs() if by_size else sample
    size = sample.numel()
    margin = 1 + SAMPLE_DEVIATIONS * math.sqrt(share * (1 - share) * size)
    first, last = math.floor(share * size - margin), math.ceil(share * size + margin)
    low = kth_value(sample, last) if last <= size else -math.inf
    return low, kth_value(sample, first) if first >= 1 else math.inf


def above_and_within(tensors: Collection[Tensor], low: float, high: float, by_size: bool) -> tuple[int, Tensor]:
    """How many elements of all `tensors` are above `high`, and those from `low` to `high`."""
    above, within = 0, []
    scratch = Scratch()
    for tensor in tensors:
        for (piece,) in pieces(tensor.detach().reshape(-1)):
            if is_array(piece):
                higher, near = scratch.above_and_within(piece.numpy(), low, high, by_size)
            else:
                values = piece.abs() if by_size else piece
                higher = int(torch.count_nonzero(values > high))
                near = values[(values >= low) & (values <= high)]
            above += higher
            within.append(near)
    return above, torch.cat(within)


def is_array(tensor: Tensor) -> bool:
    """Whether NumPy can work on `tensor` where it lies; it compares and counts in a quarter of torch's time."""
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)


class Scratch:
    """Memory that is used again for each piece: new memory costs more time than what is done with it."""

    def __init__(self) -> None:
        self._sizes = {np.dtype(kind): np.empty(PIECE_ELEMENTS, kind) for kind in (np.float32, np.float64)}
        self._higher, self._within = np.empty((2, PIECE_ELEMENTS), bool)

    def above_and_within(self, values: np.ndarray, low: float, high: float, by_size: bool) -> tuple[int, Tensor]:
        """As the function of this name, of one piece."""
        length, kind = len(values), values.dtype
        if by_size:
            values = np.abs(values, out=self._sizes[kind][:length])
        # A bound of another type would be slower.
        higher = np.greater(values, kind.type(high), out=self._higher[:length])
        within = np.greater_equal(values, kind.type(low), out=self._within[:length])
        within ^= higher
        return int(np.count_nonzero(higher)), torch.from_numpy(values[np.flatnonzero(within)])
