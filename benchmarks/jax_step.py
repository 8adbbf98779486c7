"""One training step of N particles in JAX: forward, gradients, SGD with momentum; compiled, on synthetic images."""

import functools
import math
import time
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from jax import lax

import hwa_jax
from hwa_jax import models, particles
from hwa_jax.models import layers
from hwa_jax.training.functional import FunctionalModel, from_nnx

# Network -> shape of an image, and images per particle and step: those of Fashion-MNIST and CIFAR.
MODELS = {
    "mlp": ((28, 28, 1), 128),
    "cnn_s": ((28, 28, 1), 128),
    "resnet20": ((32, 32, 3), 128),
    "wrn-16-4": ((32, 32, 3), 64),
    "vgg16": ((32, 32, 3), 64),
    "wrn-16-1": ((32, 32, 3), 64),
}
NUM_CLASSES = 10
LEARNING_RATE, MOMENTUM = 0.01, 0.9
CONVOLUTIONS = {"hwa_jax": hwa_jax.conv_general_dilated, "lax": lax.conv_general_dilated}


class Program:
    """A compiled step with its state and batch; a side for `timing.compare`.

    Args:
        model: one of MODELS.
        num_particles: N; None is one network without a particle axis.
        convolution: one of CONVOLUTIONS.

    Attributes:
        state: (params, batch_stats, optimizer state), stacked; donated by every call.
        compile_seconds: of tracing and compiling.
        step_bytes: memory of the step as the compiler counts it: arguments, results and temporary buffers.
    """

    def __init__(self, model: str, num_particles: int | None = None, convolution: str = "hwa_jax"):
        network = functional_model(model, convolution)
        self.state, self._batch = _arguments(network, model, num_particles)
        step = functools.partial(_step, network)
        if num_particles is not None:
            step = particles.vectorize(step, mesh=mesh(num_particles))
        start = time.perf_counter()
        self._compiled = jax.jit(step, donate_argnums=0).lower(self.state, *self._batch).compile()
        self.compile_seconds = time.perf_counter() - start
        memory = self._compiled.memory_analysis()
        self.step_bytes = (
            memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        )

    def __call__(self, calls: int) -> None:
        """Makes so many steps; they are dispatched ahead, as in the trainer's loop."""
        for _ in range(calls):
            self.state = self._compiled(self.state, *self._batch)
        jax.block_until_ready(self.state)


def mesh(num_particles: int) -> jax.sharding.Mesh:
    """The most devices that N particles can be cut over evenly."""
    return particles.device_mesh(jax.devices()[: math.gcd(num_particles, jax.device_count())])


def functional_model(model: str, convolution: str = "hwa_jax") -> FunctionalModel:
    """A network of MODELS with one of CONVOLUTIONS."""
    with mock.patch.object(layers, "conv_general_dilated", CONVOLUTIONS[convolution]):
        return from_nnx(
            lambda rngs: models.create(model, num_classes=NUM_CLASSES, input_shape=MODELS[model][0], rngs=rngs)
        )


def optimizer() -> optax.GradientTransformation:
    """SGD with momentum, as on PyTorch's side."""
    return optax.sgd(LEARNING_RATE, MOMENTUM)


def _arguments(network, model, num_particles):
    """State and batch on the device, all particles different."""
    image_shape, batch_size = MODELS[model]

    def one(key):
        params, batch_stats = network.init(key)
        images = jax.random.normal(key, (batch_size, *image_shape))
        labels = jax.random.randint(key, (batch_size,), 0, NUM_CLASSES)
        return (params, batch_stats, optimizer().init(params)), (images, labels)

    key = jax.random.key(0)
    return jax.jit(one)(key) if num_particles is None else particles.stack([one(k) for k in jax.random.split(key, num_particles)])


def _step(network, state, images, labels):
    params, batch_stats, opt_state = state

    def loss(params):
        logits, new_stats = network.train(params, batch_stats, images, jax.random.key(0))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new_stats

    gradients, batch_stats = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer().update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), batch_stats, opt_state
