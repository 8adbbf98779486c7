"""Stratified choices and label noise: exact counts, proportions, nothing else touched."""

import hypothesis
import hypothesis.strategies as st
import numpy as np

from hwa_jax.data.subsets import replace_labels, stratified_choice

label_arrays = st.lists(st.integers(0, 6), min_size=1, max_size=80).map(
    lambda labels: np.array(labels, np.int32)
)


@hypothesis.given(label_arrays, st.data())
def test_choice_is_exact_disjoint_and_proportional(labels, data):
    count = data.draw(st.integers(0, len(labels)))
    chosen, rest = stratified_choice(labels, count, np.random.RandomState(3))
    assert len(chosen) == count
    np.testing.assert_array_equal(np.sort(np.concatenate([chosen, rest])), np.arange(len(labels)))
    assert (np.diff(chosen) > 0).all() and (np.diff(rest) > 0).all()
    for label in np.unique(labels):
        exact = count * (labels == label).sum() / len(labels)
        assert abs((labels[chosen] == label).sum() - exact) < 1


def test_largest_remainders_get_the_missing_examples():
    # 7 of classes sized 5, 3, 2: shares 3.5, 2.1, 1.4. Rounded down 3, 2, 1 = 6; the
    # seventh goes to the remainder 0.5, class 0.
    labels = np.repeat([0, 1, 2], [5, 3, 2])
    chosen, _ = stratified_choice(labels, 7, np.random.RandomState(0))
    assert np.bincount(labels[chosen]).tolist() == [4, 2, 1]


def test_equal_remainders_go_to_the_lower_class():
    labels = np.repeat([0, 1, 2], 4)  # 4 of 12: shares 4/3 each, one is missing
    chosen, _ = stratified_choice(labels, 4, np.random.RandomState(0))
    assert np.bincount(labels[chosen]).tolist() == [2, 1, 1]


def test_choice_depends_on_the_seed_alone():
    labels = np.arange(100) % 10
    first, again, other = (
        stratified_choice(labels, 50, np.random.RandomState(seed))[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_choice_is_the_same_with_every_numpy_version():
    chosen, _ = stratified_choice(np.arange(12) % 2, 4, np.random.RandomState([0, 0]))
    assert chosen.tolist() == GOLDEN_CHOICE


# Golden: RandomState's streams are frozen, so this list must never change.
GOLDEN_CHOICE = [6, 9, 10, 11]


@hypothesis.given(label_arrays, st.floats(0, 1, exclude_max=True), st.integers(0, 99))
def test_noise_changes_exactly_its_share_to_other_classes(labels, fraction, seed):
    before = labels.copy()
    noisy = replace_labels(labels, fraction, 7, np.random.RandomState(seed))
    np.testing.assert_array_equal(labels, before)
    assert (noisy != labels).sum() == round(fraction * len(labels))
    assert noisy.dtype == labels.dtype and noisy.min() >= 0 and noisy.max() < 7


def test_noise_draws_every_other_class_equally_often():
    noisy = replace_labels(np.full(40_000, 2, np.int32), 0.9, 5, np.random.RandomState(0))
    counts = np.bincount(noisy, minlength=5)
    # 36,000 draws from 4 classes: 9,000 each, standard deviation 82; five of them allowed.
    assert counts[2] == 4_000
    np.testing.assert_allclose(counts[[0, 1, 3, 4]], 9_000, atol=410)
