"""Exact selection of the smallest weights with NumPy: one pass over cache-sized chunks, and a small partition.

A sample brackets the threshold. The pass decides all that lies below the bracket or above, and collects
what lies within, a percent or so; a partition of that gives the threshold, which decides the rest. Where
the bracket misses, the pass is run again on the side where the threshold is.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from hwa_jax.errors import UserError

# Weights per chunk: 512 KiB of float32, so that a chunk and its scratch stay in the cache.
_CHUNK = 1 << 17
_SAMPLE = 1 << 18

# In a new mask, beside 0 and 1.
_UNDECIDED = 2


class _Chunk(NamedTuple):
    """Part of a leaf: its name, its values, bool mask and new mask (uint8), all one-dimensional views."""

    name: str
    values: np.ndarray
    kept: np.ndarray
    new: np.ndarray


class _Scratch(NamedTuple):
    """A thread's own arrays, written again for every chunk: fresh ones cost more than the arithmetic in them."""

    bits: np.ndarray
    first: np.ndarray
    second: np.ndarray


def remove_smallest(
    values: Sequence[np.ndarray], kept: Sequence[np.ndarray], number: int, names: Sequence[str]
) -> list[np.ndarray]:
    """`selection.remove_smallest` for NumPy arrays.

    Takes, beside the new mask, at most one copy of the weights as float32 (float64 with float64
    leaves), and that only where nearly all magnitudes are equal.

    Example:
        >>> remove_smallest([np.array([3.0, -1.0, 1.0])], [np.ones(3, bool)], 1, ["kernel"])
        [array([ True, False,  True])]
    """
    new = [np.empty(leaf.shape, bool) for leaf in kept]
    dtype = common_dtype(values)
    chunks = list(_chunks(names, values, kept, new))
    lowest, num_ties = _scan_to_threshold(chunks, dtype, number)
    for chunk in chunks:
        num_ties -= _decide(chunk, dtype, lowest, num_ties)
    return new


def common_dtype(values: Sequence) -> np.dtype:
    """float64 if a leaf is, otherwise float32: numbers of narrower dtypes are compared as this, exactly.

    Example:
        >>> common_dtype([np.zeros(2, np.float16), np.zeros(2, np.float32)])
        dtype('float32')
    """
    return np.dtype(np.float64 if any(value.dtype == np.float64 for value in values) else np.float32)


def nan_error(name: str) -> UserError:
    """What to raise where weights that are to be ranked are NaN."""
    return UserError(f"weights of {name} are NaN: they have no magnitude to prune by; the training that made them diverged")


def _chunks(names, values, kept, new) -> Iterator[_Chunk]:
    for name, *leaf in zip(names, values, kept, new):
        value, keep, made = (array.reshape(-1) for array in leaf)
        for start in range(0, keep.size, _CHUNK):
            end = start + _CHUNK
            yield _Chunk(name, value[start:end], keep[start:end], made[start:end].view(np.uint8))


def _scan_to_threshold(chunks, dtype, number):
    """Scans, and gives the smallest bits that may stay and how many go of those that equal them."""
    remaining = sum(int(np.count_nonzero(chunk.kept)) for chunk in chunks)
    rank = min(number, remaining) - 1
    # With none to remove, an empty bracket below all magnitudes.
    low, high = _bracket(chunks, dtype, rank, remaining) if rank >= 0 else (0, -1)
    # Memory that is never written to is never taken: a copy of all weights is reserved, a percent is used.
    candidates = np.empty(remaining, _largest(dtype).dtype)
    lock = threading.Lock()

    def scan(chunk, scratch):
        nonlocal num_below, num_candidates
        below, inside = _scan(chunk, dtype, low, high, scratch)
        with lock:
            candidates[num_candidates : num_candidates + inside.size] = inside
            num_candidates += inside.size
            num_below += below

    while True:
        num_below = num_candidates = 0
        _in_parallel(scan, chunks, dtype)
        if rank < 0:
            return 0, 0
        if rank < num_below:
            low, high = 0, low - 1
        elif rank >= num_below + num_candidates:
            low, high = high + 1, _largest(dtype)
        else:
            break
    found, rank = candidates[:num_candidates], rank - num_below
    found.partition(rank)
    return found[rank], rank + 1 - np.count_nonzero(found[:rank] < found[rank])


def _bracket(chunks, dtype, rank, remaining):
    """Bits between which the magnitude of this rank lies, three standard deviations of the sample to either side."""
    # An odd stride visits every column of a matrix with an even number of them.
    stride = sum(chunk.kept.size for chunk in chunks) // _SAMPLE | 1
    sample = [_bits(chunk.values[::stride], dtype)[chunk.kept[::stride]] for chunk in chunks]
    sample = np.sort(np.concatenate(sample))
    share = rank / remaining
    middle, margin = share * sample.size, 3 * (share * (1 - share) * sample.size) ** 0.5 + 1
    first, last = int(middle - margin), int(middle + margin)
    return sample[first] if first > 0 else 0, sample[last] if last < sample.size else _largest(dtype)


def _scan(chunk, dtype, low, high, scratch):
    """Decides what lies outside the bracket; how many go, and the magnitudes within."""
    bits = _bits(chunk.values, dtype, scratch.bits)
    infinity = np.array(np.inf, dtype).view(bits.dtype)
    if bits.max() > infinity and (chunk.kept & (bits > infinity)).any():
        raise nan_error(chunk.name)
    below = np.less(bits, low, out=scratch.first)
    below &= chunk.kept
    above = np.greater(bits, high, out=chunk.new.view(bool))
    above &= chunk.kept
    inside = np.bitwise_xor(chunk.kept, above, out=scratch.second)
    inside ^= below
    undecided = np.flatnonzero(inside)
    chunk.new[undecided] = _UNDECIDED
    return int(np.count_nonzero(below)), bits[undecided]


def _decide(chunk, dtype, lowest, num_ties):
    """Decides the rest by the threshold; how many of the first ties went, at most `num_ties`."""
    undecided = np.flatnonzero(chunk.new == _UNDECIDED)
    bits = _bits(chunk.values[undecided], dtype)
    keeps = bits >= lowest
    ties = np.flatnonzero(bits == lowest)[:num_ties]
    keeps[ties] = False
    chunk.new[undecided] = keeps
    return ties.size


def _in_parallel(work: Callable[[_Chunk, _Scratch], None], chunks, dtype) -> None:
    num_threads = max(1, min(os.cpu_count(), len(chunks)))
    length = max((chunk.kept.size for chunk in chunks), default=0)

    def thread(index):
        scratch = _Scratch(np.empty(length, _largest(dtype).dtype), np.empty(length, bool), np.empty(length, bool))
        for chunk in chunks[index::num_threads]:
            work(chunk, _Scratch(*(array[: chunk.kept.size] for array in scratch)))

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(thread, range(num_threads)))


def _bits(values, dtype, out=None):
    """Magnitudes as signed integers of the same order; never a view of the values."""
    largest = _largest(dtype)
    return np.bitwise_and(values.astype(dtype, copy=False).view(largest.dtype), largest, out=out)


def _largest(dtype):
    integer = np.dtype(f"int{8 * dtype.itemsize}")
    return integer.type(np.iinfo(integer).max)
