"""Exact selection of the smallest weights with NumPy: two passes over cache-sized chunks, and a small partition.

A sample brackets the threshold; the first pass counts what lies below the bracket and collects what
lies in it, a percent or two; a partition of those gives the threshold exactly. The second pass writes
the mask. Where the bracket misses, the first pass is run again on the side where the threshold is.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from hwa_jax.errors import UserError

# Weights per chunk: 1 MiB of float32, so that a chunk's temporaries stay in the cache.
_CHUNK = 1 << 18
_SAMPLE = 1 << 16


class _Chunk(NamedTuple):
    """Part of a leaf: its name, its values and masks, all one-dimensional views."""

    name: str
    values: np.ndarray
    kept: np.ndarray
    new: np.ndarray


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
    number = min(number, sum(int(np.count_nonzero(leaf)) for leaf in kept))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        threshold, num_ties = _threshold(pool, chunks, dtype, number) if number else (0, 0)
        counts = pool.map(lambda chunk: _keep_from(chunk, dtype, threshold), chunks)
        for chunk, count in zip(chunks, counts):
            if num_ties and count:
                ties = np.flatnonzero((_bits(chunk.values, dtype) == threshold) & chunk.kept)[:num_ties]
                chunk.new[ties] = False
                num_ties -= ties.size
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
        flat = [array.reshape(-1) for array in leaf]
        for start in range(0, flat[0].size, _CHUNK):
            yield _Chunk(name, *(array[start : start + _CHUNK] for array in flat))


def _bits(values, dtype):
    """Magnitudes as signed integers of the same order; always a new array."""
    largest = _largest(dtype)
    return values.astype(dtype, copy=False).view(largest.dtype) & largest


def _largest(dtype):
    integer = np.dtype(f"int{8 * dtype.itemsize}")
    return integer.type(np.iinfo(integer).max)


def _threshold(pool: Executor, chunks, dtype, number):
    """Magnitude bits of the number-th smallest, counted from 1, and how many of that magnitude go."""
    low, high = _bracket(chunks, dtype, number)
    # Memory that is never written to is never taken: a copy of all weights is reserved, a few percent are used.
    candidates = np.empty(sum(chunk.kept.size for chunk in chunks), low.dtype)
    lock = threading.Lock()

    def scan(chunk):
        nonlocal num_below, num_candidates
        below, inside = _scan(chunk, dtype, low, high)
        with lock:  # Results that waited for one another in a queue could be a second copy.
            candidates[num_candidates : num_candidates + inside.size] = inside
            num_candidates += inside.size
            num_below += below

    while True:
        num_below = num_candidates = 0
        list(pool.map(scan, chunks))
        rank = number - 1 - num_below
        if rank < 0:
            low, high = np.zeros_like(low), low - 1
        elif rank >= num_candidates:
            low, high = high + 1, _largest(dtype)
        else:
            break
    found = candidates[:num_candidates]
    found.partition(rank)
    threshold = found[rank]
    return threshold, number - num_below - np.count_nonzero(found[:rank] < threshold)


def _bracket(chunks, dtype, number):
    """Bits between which the number-th smallest lies, four standard deviations of the sample to either side."""
    # An odd stride visits every column of a matrix with an even number of them.
    stride = sum(chunk.kept.size for chunk in chunks) // _SAMPLE | 1
    sample = [_bits(chunk.values[::stride], dtype)[chunk.kept[::stride]] for chunk in chunks]
    sample = np.sort(np.concatenate(sample))
    remaining = sum(np.count_nonzero(chunk.kept) for chunk in chunks)
    middle, margin = number / remaining * sample.size, 2 * sample.size**0.5 + 1
    first, last = int(middle - margin), int(middle + margin)
    low = sample[first] if first > 0 else sample.dtype.type(0)
    return low, sample[last] if last < sample.size else _largest(dtype)


def _scan(chunk, dtype, low, high):
    """How many kept magnitudes lie below the bracket, and those within."""
    bits = _bits(chunk.values, dtype)
    below = bits < low
    below &= chunk.kept
    inside = bits <= high
    inside &= chunk.kept
    inside ^= below
    return np.count_nonzero(below), bits[np.flatnonzero(inside)]


def _keep_from(chunk, dtype, threshold):
    """Writes which magnitudes are at least the threshold; how many equal it."""
    bits = _bits(chunk.values, dtype)
    infinity = np.array(np.inf, dtype).view(bits.dtype)
    if bits.max() > infinity and (chunk.kept & (bits > infinity)).any():
        raise nan_error(chunk.name)
    np.logical_and(bits >= threshold, chunk.kept, out=chunk.new)
    return np.count_nonzero((bits == threshold) & chunk.kept)
