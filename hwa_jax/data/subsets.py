"""Seeded, class-stratified choices: subset, held-out split, label noise.

`numpy.random.RandomState` is used because its streams are frozen, while those of
`numpy.random.Generator` may change between NumPy versions; results that name a seed
must mean the same images everywhere.
"""

import numpy as np


def stratified_choice(
    labels: np.ndarray, count: int, random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses exactly ``count`` examples with the class proportions of ``labels``.

    Every class gets its share rounded down; what is missing goes to the classes with
    the largest remainders, the lower class first among equals.

    Args:
        labels: int ``[n]``.
        count: how many to choose, 0 <= count <= n.
        random: source of the permutation within each class.

    Returns:
        ``(chosen [count], rest [n - count])``: int64 indices, each ascending.

    Example:
        >>> labels = np.array([0, 0, 0, 0, 1, 1])
        >>> chosen, rest = stratified_choice(labels, 3, np.random.RandomState(0))
        >>> labels[chosen], labels[rest]
        (array([0, 0, 1]), array([0, 0, 1]))
    """
    classes, sizes = np.unique(labels, return_counts=True)
    shares, remainders = np.divmod(count * sizes.astype(np.int64), len(labels))
    short = count - shares.sum()
    shares[np.argsort(-remainders, kind="stable")[:short]] += 1
    is_chosen = np.zeros(len(labels), bool)
    for label, share in zip(classes, shares):
        members = random.permutation(np.flatnonzero(labels == label))
        is_chosen[members[:share]] = True
    return np.flatnonzero(is_chosen), np.flatnonzero(~is_chosen)


def replace_labels(
    labels: np.ndarray, fraction: float, num_classes: int, random: np.random.RandomState
) -> np.ndarray:
    """Replaces exactly ``round(fraction * n)`` labels, each by another class.

    The examples are drawn without replacement; the new class is uniform over the
    ``num_classes - 1`` others, so every chosen label does change.

    Args:
        labels: int32 ``[n]`` in ``range(num_classes)``; not modified.
        fraction: in [0, 1).
        num_classes: at least 2.
        random: source of the examples and of the new classes.

    Returns:
        int32 ``[n]``.

    Example:
        >>> clean = np.zeros(10, np.int32)
        >>> int((replace_labels(clean, 0.3, 5, np.random.RandomState(0)) != 0).sum())
        3
    """
    chosen = random.permutation(len(labels))[: round(fraction * len(labels))]
    offsets = random.randint(1, num_classes, size=len(chosen))
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + offsets) % num_classes
    return noisy
