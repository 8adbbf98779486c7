"""Augmentation: windows of the zero-padded image, flips, normalization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwa_jax.data.augmentation import augment, normalize


def image_batch(count, height=5, width=4, channels=2):
    """Distinct nonzero pixels within an image, so a window determines its position."""
    size = height * width * channels
    image = 1 + np.arange(size, dtype=np.uint8).reshape(height, width, channels)
    return np.stack([image] * count)


def windows(image, padding):
    """{position: window}, by NumPy: every crop that augment may return."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return {
        (row, column): padded[row : row + height, column : column + width]
        for row in range(2 * padding + 1)
        for column in range(2 * padding + 1)
    }


def position(cropped, image, padding, flip=False):
    """Where a crop was taken, and whether it was flipped; fails if it is no window."""
    matches = [
        (*where, flipped)
        for where, window in windows(image, padding).items()
        for flipped in ((False, True) if flip else (False,))
        if np.array_equal(cropped, window[:, ::-1] if flipped else window)
    ]
    assert len(matches) == 1, f"{len(matches)} windows fit"
    return matches[0]


@pytest.mark.parametrize("padding", [1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_every_result_is_a_window_of_the_padded_image(padding, flip):
    images = image_batch(200)
    cropped = jax.jit(lambda key: augment(key, images, crop_padding=padding, flip=flip))(
        jax.random.key(padding)
    )
    assert cropped.dtype == jnp.uint8 and cropped.shape == images.shape
    found = {position(crop, images[0], padding, flip) for crop in np.asarray(cropped)}
    if padding == 1:
        # 9 positions (18 with flips) in 200 draws: all are seen.
        assert len(found) == (18 if flip else 9)


def test_positions_and_flips_are_uniform_and_independent():
    images = image_batch(4_500, height=3, width=3, channels=1)
    cropped = np.asarray(augment(jax.random.key(0), images, crop_padding=1, flip=True))
    counts = {}
    for crop in cropped:
        where = position(crop, images[0], 1, flip=True)
        counts[where] = counts.get(where, 0) + 1
    # 18 outcomes, 250 each, standard deviation 15.4; five of them allowed.
    assert len(counts) == 18
    np.testing.assert_allclose(list(counts.values()), 250, atol=77)


def test_hand_computed_crops():
    # The image [[1, 2], [3, 4]] padded by one:   0 0 0 0
    #                                             0 1 2 0
    #                                             0 3 4 0
    #                                             0 0 0 0
    expected = {
        (0, 0): [[0, 0], [0, 1]],
        (0, 1): [[0, 0], [1, 2]],
        (0, 2): [[0, 0], [2, 0]],
        (1, 0): [[0, 1], [0, 3]],
        (1, 1): [[1, 2], [3, 4]],
        (1, 2): [[2, 0], [4, 0]],
        (2, 0): [[0, 3], [0, 0]],
        (2, 1): [[3, 4], [0, 0]],
        (2, 2): [[4, 0], [0, 0]],
    }
    images = np.tile(np.array([[1, 2], [3, 4]], np.uint8)[None, :, :, None], (200, 1, 1, 1))
    cropped = np.asarray(augment(jax.random.key(0), images, crop_padding=1))[..., 0]
    assert {crop.tobytes() for crop in cropped} == {
        np.array(window, np.uint8).tobytes() for window in expected.values()
    }


def test_flip_is_left_to_right_and_per_image():
    images = np.tile(np.array([[1, 2, 3], [4, 5, 6]], np.uint8)[None, :, :, None], (64, 1, 1, 1))
    flipped = np.asarray(augment(jax.random.key(0), images, flip=True))[..., 0]
    mirrored = [row.tolist() == [[3, 2, 1], [6, 5, 4]] for row in flipped]
    kept = [row.tolist() == [[1, 2, 3], [4, 5, 6]] for row in flipped]
    assert all(m != k for m, k in zip(mirrored, kept))
    assert 12 <= sum(mirrored) <= 52  # 32 ± 5 standard deviations of 4


def test_without_crop_and_flip_nothing_changes():
    images = image_batch(3)
    np.testing.assert_array_equal(augment(jax.random.key(0), images), images)


def test_padding_larger_than_the_image():
    images = image_batch(300, height=2, width=2, channels=1)
    cropped = np.asarray(augment(jax.random.key(0), images, crop_padding=3))
    allowed = {window.tobytes() for window in windows(images[0], 3).values()}
    assert {crop.tobytes() for crop in cropped} <= allowed
    assert any((crop == 0).all() for crop in cropped)


def test_flipping_does_not_change_the_crop():
    images = image_batch(50)
    key = jax.random.key(4)
    cropped = np.asarray(augment(key, images, crop_padding=2))
    both = np.asarray(augment(key, images, crop_padding=2, flip=True))
    for plain, maybe in zip(cropped, both):
        assert np.array_equal(plain, maybe) or np.array_equal(plain[:, ::-1], maybe)


def test_particles_under_vmap_draw_as_they_do_alone():
    keys = jax.random.split(jax.random.key(0), 3)
    images = jnp.stack([image_batch(16)] * 3)
    together = jax.vmap(lambda k, x: augment(k, x, crop_padding=2, flip=True))(keys, images)
    for k in range(3):
        alone = augment(keys[k], images[k], crop_padding=2, flip=True)
        np.testing.assert_array_equal(together[k], alone)
    assert (together[0] != together[1]).any()


def test_misuse():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="crop_padding must be at least 0, not -1"):
        augment(key, image_batch(1), crop_padding=-1)
    with pytest.raises(ValueError, match=r"uint8 \[b, h, w, c\], not float32"):
        augment(key, image_batch(1).astype(np.float32))
    with pytest.raises(ValueError, match=r"not uint8 \(5, 4, 2\)"):
        augment(key, image_batch(1)[0])


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 3e-7), (jnp.bfloat16, 2**-8)])
def test_normalize_against_float64(dtype, tolerance):
    images = np.random.RandomState(0).randint(0, 256, (10, 4, 4, 3)).astype(np.uint8)
    mean, std = np.array([0.1, 0.5, 0.9]), np.array([0.2, 0.3, 1.0])
    expected = (images / 255.0 - mean) / std
    result = jax.jit(lambda x: normalize(x, mean, std, dtype))(images)
    assert result.dtype == dtype
    # Relative to the largest value that enters the difference, 1 / std.
    np.testing.assert_allclose(
        np.asarray(result, np.float64), expected, rtol=tolerance, atol=tolerance / 0.2
    )
