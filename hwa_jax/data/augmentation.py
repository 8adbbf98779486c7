"""Random crop, flip and normalization of uint8 images, inside the jitted step."""

import jax
import jax.numpy as jnp


def augment(
    key: jax.Array, images: jax.Array, *, crop_padding: int = 0, flip: bool = False, first: jax.Array | int = 0,
    batch_size: int | None = None,
) -> jax.Array:
    """Crops every image at its own random position and flips it with probability 1/2.

    The image is padded by ``crop_padding`` pixels of value 0 on all four sides, and a
    window of its own size is cut out at one of the ``(2 * crop_padding + 1)**2``
    positions, drawn uniformly and separately for each image. The padding is 0 before
    normalization: black, not the mean.

    Args:
        key: PRNG key of this batch; fold particle, epoch and step into it.
        images: uint8 ``[batch, height, width, channels]``.
        crop_padding: pixels on each side; 0 means no crop; static.
        flip: whether to flip left to right at random; static.
        first, batch_size: the images are those from index ``first`` on of a batch of ``batch_size``, and get what
            they would get within it; None means that they are the batch. ``batch_size`` is static.

    Returns:
        uint8 ``[batch, height, width, channels]``.

    Raises:
        ValueError: ``crop_padding`` < 0, or images of another rank or dtype.

    Example:
        >>> images = jnp.zeros((2, 8, 8, 1), jnp.uint8)
        >>> augment(jax.random.key(0), images, crop_padding=1, flip=True).shape
        (2, 8, 8, 1)
    """
    if images.ndim != 4 or images.dtype != jnp.uint8:
        raise ValueError(f"images must be uint8 [b, h, w, c], not {images.dtype} {images.shape}")
    if crop_padding < 0:
        raise ValueError(f"crop_padding must be at least 0, not {crop_padding}")
    number = images.shape[0]
    batch_size = number if batch_size is None else batch_size

    def mine(drawn):
        return drawn if batch_size == number else jax.lax.dynamic_slice_in_dim(drawn, first, number)

    crop_key, flip_key = jax.random.split(key)
    if crop_padding:
        starts = jax.random.randint(crop_key, (batch_size, 2), 0, 2 * crop_padding + 1)
        images = _crop(mine(starts), images, crop_padding)
    if flip:
        flipped = mine(jax.random.bernoulli(flip_key, shape=(batch_size,)))[:, None, None, None]
        images = jnp.where(flipped, images[:, :, ::-1], images)
    return images


def _crop(starts: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """A window of each zero-padded image at its own (row, column)."""
    widths = ((0, 0), (padding, padding), (padding, padding), (0, 0))

    def window(padded: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(padded, (start[0], start[1], 0), images.shape[1:])

    return jax.vmap(window)(jnp.pad(images, widths), starts)


def normalize(images: jax.Array, mean: jax.Array, std: jax.Array, dtype=jnp.float32) -> jax.Array:
    """Scales uint8 images to 0..1 and standardizes each channel.

    Args:
        images: uint8 ``[..., channels]``.
        mean: ``[channels]``, of images scaled to 0..1 (`Dataset.mean`).
        std: ``[channels]``, likewise (`Dataset.std`), nowhere 0.
        dtype: of the result; the arithmetic is in float32.

    Returns:
        ``(images / 255 - mean) / std``, ``[..., channels]``, of ``dtype``.

    Example:
        >>> images = jnp.array([[0], [255]], jnp.uint8)
        >>> normalize(images, jnp.array([0.5]), jnp.array([0.5])).tolist()
        [[-1.0], [1.0]]
    """
    scaled = images.astype(jnp.float32) / 255.0
    return ((scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)).astype(dtype)
