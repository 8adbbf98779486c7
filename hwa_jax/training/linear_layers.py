"""Dense and convolutional layers as what they are to pruning: one matrix times many columns."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from hwa_jax.training.functional import FunctionalModel


class LinearLayer(NamedTuple):
    """A dense or convolutional layer, without its bias, met in a call of its network.

    With W = kernel.reshape(-1, out).T, `outputs(W @ columns(inputs))` is `multiply(inputs, kernel)`.

    Attributes:
        name: of its kernel, "params/dense1/kernel".
        inputs: shape and dtype in this call, [n, ..., in].
        kernel: shape and dtype, [in, out] or [height, width, in, out].
        result: shape and dtype, [n, ..., out].
        multiply: (inputs, kernel) -> result, as the network does it.
        window: (strides, padding) of a convolution, as lax takes them.
    """

    name: str
    inputs: jax.ShapeDtypeStruct
    kernel: jax.ShapeDtypeStruct
    result: jax.ShapeDtypeStruct
    multiply: Callable[[jax.Array, jax.Array], jax.Array]
    window: tuple[Any, ...]

    @property
    def num_columns(self) -> int:
        """How many columns the matrix meets: one an image, and of a convolution one an output pixel."""
        return math.prod(self.result.shape[:-1])

    def flops(self, num_weights: int) -> int:
        """Floating-point operations of this call if so many weights remain; a multiply-add is two."""
        return 2 * self.num_columns * num_weights

    def columns(self, inputs: jax.Array) -> jax.Array:
        """What each output is a sum over, [kernel.size / out, num_columns]."""
        if len(self.kernel.shape) == 2:
            return inputs.reshape(-1, inputs.shape[-1]).T
        strides, padding = self.window
        size = self.kernel.shape[:2]
        pads = lax.padtype_to_pads(inputs.shape[1:3], size, strides, padding) if isinstance(padding, str) else padding
        planes = jnp.pad(inputs, ((0, 0), *pads, (0, 0))).transpose(3, 0, 1, 2)
        ends = [stride * (pixels - 1) + 1 for stride, pixels in zip(strides, self.result.shape[1:3])]
        taps = [
            planes[:, :, row : row + ends[0] : strides[0], column : column + ends[1] : strides[1]]
            for row in range(size[0]) for column in range(size[1])
        ]
        return jnp.stack(taps).reshape(-1, self.num_columns)

    def outputs(self, rows: jax.Array) -> jax.Array:
        """[out, num_columns] in the form of `multiply`."""
        return jnp.moveaxis(rows.reshape(-1, *self.result.shape[:-1]), 0, -1).astype(self.result.dtype)


Handler = Callable[[LinearLayer, jax.Array, jax.Array], jax.Array]


def intercept(model: nnx.Module, handle: Handler) -> nnx.Module:
    """Has `handle(layer, inputs, kernel)` compute the products of dense and 2-D convolutional layers.

    Grouped and dilated convolutions go on by themselves: they are not one matrix.

    Example:
        >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        >>> _ = intercept(model, lambda layer, inputs, kernel: layer.outputs(kernel.T @ layer.columns(inputs)))
        >>> model(jnp.ones((5, 3))).shape
        (5, 2)
    """
    for path, module in nnx.iter_modules(model):
        name = "/".join(map(str, ("params", *path, "kernel")))
        if isinstance(module, nnx.Linear):
            module.dot_general = functools.partial(_call, handle, name, module.dot_general)
        elif isinstance(module, nnx.Conv) and _is_one_matrix(module):
            module.conv_general_dilated = functools.partial(_call, handle, name, module.conv_general_dilated)
    return model


def linear_layers(network: Callable[[Handler], FunctionalModel], images: jax.ShapeDtypeStruct) -> dict[str, LinearLayer]:
    """The layers of a network by the names of their kernels, in the order in which images meet them.

    Args:
        network: makes the network with a handler, see `intercept`.
        images: normalized, float32 [n, height, width, channels].
    """
    found = {}

    def note(layer, inputs, kernel):
        found[layer.name] = layer
        return layer.multiply(inputs, kernel)

    model = network(note)
    jax.eval_shape(model.predict, *jax.eval_shape(model.init, jax.random.key(0)), images)
    return found


def _call(handle, name, multiply, inputs, kernel, *arguments, **options):
    def product(inputs, kernel):
        return multiply(inputs, kernel, *arguments, **options)

    structs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (inputs, kernel)]
    layer = LinearLayer(name, *structs, jax.eval_shape(product, *structs), product, arguments)
    return handle(layer, inputs, kernel)


def _is_one_matrix(module):
    is_dilated = any(dilation not in (1, (1, 1)) for dilation in (module.input_dilation, module.kernel_dilation))
    return len(module.kernel_size) == 2 and module.feature_group_count == 1 and not is_dilated
