"""From a file of pruned weights to a function of images: SciPy where that was measured to be faster."""

import functools
import math
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwa_jax.errors import UserError
from hwa_jax.storage import safetensors, sparse_weights
from hwa_jax.training import predictor
from hwa_jax.training.linear_layers import LinearLayer, intercept, linear_layers
from hwa_jax.training.program_pieces import Program, sparse_product

# Of a convolution's columns for one batch; larger ones are not tried, since their making fills the memory.
_LARGEST_COLUMNS = 2**28


class SparseNetwork:
    """A pruned network, any of whose dense and convolutional layers can run as SciPy CSR matrices; on the CPU.

    Under bfloat16 compute these layers are computed in float32.

    Args:
        metadata: which network, as `predictor.description` made it.
        params, batch_stats, mask: as `load_sparse_weights` returns them.

    Raises:
        UserError: weights of another network.

    Attributes:
        metadata: the same.
        matrices: kernel name -> CSR [out, in], of convolutions [out, height * width * in]; for prunable kernels.
    """

    def __init__(self, metadata: dict[str, Any], params: Any, batch_stats: Any, mask: Any):
        import scipy.sparse

        self.metadata = metadata
        self._arrays = safetensors.named_leaves({"params": params, "batch_stats": batch_stats})
        model = predictor.network(metadata)
        like = jax.eval_shape(model.init, jax.random.key(0))
        self._like = safetensors.named_leaves(dict(zip(safetensors.GROUPS, like)))
        difference = safetensors.first_difference(self._arrays, self._like)
        if difference:
            raise UserError("{} is {}, in the network it is {}: give the weights of this network".format(*difference))
        prunable = safetensors.named_leaves({"params": mask})
        self.matrices = {}
        for name in self.layers(1):
            if name in prunable:
                kernel = self._arrays.pop(name)
                self.matrices[name] = scipy.sparse.csr_array(kernel.reshape(-1, kernel.shape[-1]).T)
        self._device = jax.local_devices(backend="cpu")[0]

    def layers(self, batch_size: int) -> dict[str, LinearLayer]:
        """Dense and convolutional layers by the names of their kernels, in a batch of so many images."""
        images = jax.ShapeDtypeStruct((batch_size, *self.metadata["model"]["input_shape"]), jnp.float32)
        return linear_layers(self._network, images)

    def candidates(self, batch_size: int) -> list[str]:
        """The kernels that can run as CSR matrices in a batch of so many images."""
        columns = {name: layer.num_columns for name, layer in self.layers(batch_size).items()}
        return [name for name, matrix in self.matrices.items() if 4 * matrix.shape[1] * columns[name] <= _LARGEST_COLUMNS]

    def program(self, batch_size: int, chosen: Collection[str]) -> Program:
        """uint8 images [batch_size, height, width, channels] -> logits, float32 NumPy arrays.

        Args:
            batch_size: how many images.
            chosen: the kernels that run as CSR matrices, some of `matrices`; the others are dense.
        """
        model = self._network(functools.partial(_product, chosen))

        def logits(weights, images):
            params, batch_stats = safetensors.as_weights("weights", weights)
            return model.predict(params, batch_stats, predictor.normalized(images, self.metadata))

        images = jax.ShapeDtypeStruct((batch_size, *self.metadata["model"]["input_shape"]), jnp.uint8)
        return Program(logits, self._like, images, self.matrices, self._dense)

    def layer_program(self, layer: LinearLayer, as_csr: bool) -> Program:
        """One layer alone, inputs -> result."""
        chosen = [layer.name] if as_csr else []

        def result(weights, inputs):
            return _product(chosen, layer, inputs, weights[layer.name].astype(layer.kernel.dtype))

        return Program(result, {layer.name: self._like[layer.name]}, layer.inputs, self.matrices, self._dense)

    def _network(self, handle):
        return predictor.network(self.metadata, lambda model: intercept(model, handle))

    @functools.cached_property
    def _dense(self):
        @functools.cache
        def read(name):
            array = self._arrays.get(name)
            if array is None:
                array = self.matrices[name].toarray().T.reshape(self._like[name].shape)
            return jax.device_put(array, self._device)

        return read


def load_sparse_predictor(path: str | os.PathLike) -> Callable[[Any], np.ndarray]:
    """A pruned network as a function of images; on the CPU.

    Layers run as SciPy CSR matrices where the file says that this measured faster when it was exported, at the
    measured batch size nearest in ratio; otherwise dense, as all layers do if the file says nothing.

    Args:
        path: a file of `experiments/export_sparse.py`, or one of a cycle in a work directory of train_swamp.

    Returns:
        predict(images uint8 [n, height, width, channels]) -> logits float32 [n, classes], NumPy. It is prepared once
        for each n, and raises ValueError for images of another shape or dtype.

    Raises:
        UserError: no such file, a damaged one, or one that does not say which network it belongs to.
    """
    metadata, weights = safetensors.load_metadata(path), sparse_weights.load_sparse_weights(path)
    if "model" not in metadata:
        raise UserError(f"{path}: does not say which network its weights belong to: export it with experiments/export_sparse.py")
    try:
        network = SparseNetwork(metadata, *weights)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    execution = {int(size): names for size, names in metadata.get("execution", {}).items()}
    program = functools.cache(lambda n: network.program(n, nearest(execution, n)))

    def predict(images):
        predictor.require_images(images, metadata)
        return program(len(images))(np.asarray(images))

    return predict


def nearest(execution: Mapping[int, Collection[str]], batch_size: int) -> Collection[str]:
    """The entry of the measured batch size nearest in ratio to this one; empty if there is none.

    Example:
        >>> nearest({1: ["a"], 64: []}, 7), nearest({1: ["a"], 64: []}, 9)
        (['a'], [])
    """
    return execution[min(execution, key=lambda size: abs(math.log(batch_size / size)))] if execution else ()


def _product(chosen, layer, inputs, kernel):
    if layer.name not in chosen:
        return layer.multiply(inputs, kernel)
    return layer.outputs(sparse_product(layer.name, layer.result.shape[-1], layer.columns(inputs)))
