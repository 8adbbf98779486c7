"""Row "roofline": the share of a processor's measured peak that a training step reaches."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

import timing
from jax_step import MODELS, Program, functional_model

TITLE = "Roofline: floating-point operations of a step over those of a large matrix product"
NOTE = (
    "Operations are counted from shapes, convolutions and matrix products alone: forward 2 per multiplication and addition, gradients "
    "twice that, without the gradient of the images. The peak is that of a product of two 4096 x 4096 float32 matrices, the faster of "
    "XLA's and NumPy's, in turns with the step."
)
SIDE = 4096


def cells(options: Any) -> list[dict[str, Any]]:
    """One per network and N."""
    return [
        {"row": "roofline", "model": model, "num_particles": n} for model in ("cnn_s", "resnet20") for n in (1, 4)
    ]


def measure(cell: dict[str, Any], repeats: int) -> Iterator[dict[str, Any]]:
    """Yields rates in Gflop/s and the share."""
    program = Program(cell["model"], cell["num_particles"])
    operations = cell["num_particles"] * step_operations(cell["model"])
    peak = 0.0
    for matmul in _matmuls():
        pair = timing.compare(program, timing.repeated(matmul), repeats=repeats, limit=60.0)
        peak = max(peak, 2 * SIDE**3 / pair["other_seconds"])
    rate = operations / pair["ours_seconds"]
    yield {"figures": {
        "Gflop a step": operations / 1e9, "step, Gflop/s": rate / 1e9, "peak, Gflop/s": peak / 1e9, "share of peak": rate / peak,
    }}


def step_operations(model: str) -> int:
    """Of the forward pass and both gradients of one network on one batch.

    Example: 784 x 300, 300 x 100 and 100 x 10 weights, 128 images, two operations each, three times; the first
    layer has no gradient of its input.
        >>> step_operations("mlp") == 128 * 2 * (3 * (300 * 100 + 100 * 10) + 2 * 784 * 300)
        True
    """
    image_shape, batch_size = MODELS[model]
    network = functional_model(model, "lax")
    params, batch_stats = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    forward = _operations(jax.make_jaxpr(lambda *args: network.train(*args, jax.random.key(0)))(params, batch_stats, images).jaxpr)
    return 3 * sum(forward) - forward[0]


def _operations(jaxpr):
    """Of each convolution and matrix product, in order."""
    found = []
    for equation in jaxpr.eqns:
        out = equation.outvars[0].aval
        if equation.primitive.name == "conv_general_dilated":
            weights, numbers = equation.invars[1].aval, equation.params["dimension_numbers"]
            found.append(2 * out.size * weights.size // weights.shape[numbers.rhs_spec[0]])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            found.append(2 * out.size * math.prod(equation.invars[0].aval.shape[i] for i in contracted))
        for inner in jaxprs_in_params(equation.params):
            found += _operations(inner)
    return found


def _matmuls():
    matrix = np.ones((SIDE, SIDE), np.float32)
    on_device = jnp.asarray(matrix)
    product = jax.jit(jnp.matmul)
    yield lambda: jax.block_until_ready(product(on_device, on_device))
    if jax.default_backend() == "cpu":
        yield lambda: matrix @ matrix
