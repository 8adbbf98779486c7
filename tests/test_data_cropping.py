"""Crops of images of any size: on a ramp the pixels say where they were cut out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwa_jax.data.cropping import center_crop, random_resized_crop

SHAPES = st.tuples(st.integers(1, 60), st.integers(1, 60), st.sampled_from([1, 3, 4]))


def ramps(height, width):
    """Red rises by 2 a pixel to the right, green downwards; linear interpolation keeps ramps, but at their ends."""
    return np.stack([*np.broadcast_arrays(2 * np.arange(width), 2 * np.arange(height)[:, None]), np.zeros((height, width))], -1).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 100), (120, 64)])
def test_the_center_is_seven_eighths_of_the_shorter_side(height, width):
    crop = center_crop(ramps(height, width), 14).astype(float)
    # 56 of 64 pixels become 14: the first one is centered 2 pixels, less half a pixel, right of the left border.
    columns = 2 * ((width - 56) / 2 + 4 * np.arange(14) + 1.5)
    rows = 2 * ((height - 56) / 2 + 4 * np.arange(14) + 1.5)
    np.testing.assert_allclose(crop[..., 0], np.broadcast_to(columns, (14, 14)), atol=1)
    np.testing.assert_allclose(crop[..., 1], np.broadcast_to(rows[:, None], (14, 14)), atol=1)


def part(crop):
    """(left, top, width, height) of the part of a ramp that a crop shows, from its inner pixels."""
    size = len(crop)
    sides = []
    for values in (crop[size // 2, :, 0], crop[:, size // 2, 1]):
        slope = (float(values[-3]) - float(values[2])) / (size - 5) / 2
        sides.append((float(values[2]) / 2 + 0.5 - 2.5 * slope, slope * size))
    (left, width), (top, height) = sides
    return left, top, width, height


def test_random_parts_have_the_published_areas_and_aspects():
    image, parts = ramps(90, 120), []
    for seed in range(200):
        crop = random_resized_crop(image, 16, np.random.RandomState(seed))
        left, top, width, height = part(crop)
        assert -1 < left and left + width < 121 and -1 < top and top + height < 91
        parts.append((width * height / (90 * 120), width / height, left / (120 - width), top / (90 - height)))
    areas, aspects, *places = np.array(parts).T
    # To the rounding of pixels; of the larger areas some do not fit.
    assert 0.05 < areas.min() < 0.13 and 0.85 < areas.max() < 1.03
    assert 0.68 < aspects.min() < 0.8 and 1.25 < aspects.max() < 1.46
    assert all(place.min() < 0.1 and place.max() > 0.9 for place in np.clip(places, 0, 1))


def test_where_nothing_fits_it_is_the_center():
    line = np.arange(200, dtype=np.uint8).reshape(1, 200, 1)
    crop = random_resized_crop(line, 4, np.random.RandomState(0))
    np.testing.assert_array_equal(crop, center_crop(line, 4))


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_any_image_becomes_the_size_and_the_same_part_again(shape, size, seed):
    image = np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)
    crops = [random_resized_crop(image, size, np.random.RandomState(seed)) for _ in range(2)]
    assert crops[0].shape == (size, size, shape[-1]) and crops[0].dtype == np.uint8
    np.testing.assert_array_equal(*crops)
    low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
    if shape[-1] < 4:  # of four channels one is taken for opacity, which colors are weighted with
        assert (crops[0] >= low).all() and (crops[0] <= high).all()
    assert center_crop(image, size).shape == (size, size, shape[-1])
