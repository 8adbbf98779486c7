"""NNX models as pure functions of pytrees: the one place where Flax objects are taken apart.

`nnx.split` runs once. Everything after it is dictionaries of arrays under plain JAX transforms, so
averages, masks and stores never see a Flax type.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx


class FunctionalModel(NamedTuple):
    """A network as pure functions. Params and batch_stats are nested dictionaries of arrays.

    Attributes:
        init: key -> (params, batch_stats); batch_stats is an empty dictionary without BatchNorm.
        train: (params, batch_stats, images [b, h, w, c], key) -> (logits [b, classes] float32,
            batch_stats moved by this batch). The key feeds dropout and the like.
        predict: (params, batch_stats, images) -> logits, with the running statistics.
        moments: (params, batch_stats, images) -> the batch's own statistics, a tree like batch_stats
            whose {"mean", "var"} nodes are pairs (mean [C], variance [C]).
    """

    init: Callable[[jax.Array], tuple[Any, Any]]
    train: Callable[..., tuple[jax.Array, Any]]
    predict: Callable[..., jax.Array]
    moments: Callable[..., Any]


def from_nnx(build: Callable[[nnx.Rngs], nnx.Module], *, data_axis: str | None = None) -> FunctionalModel:
    """Takes an NNX model apart into pure functions.

    Args:
        build: makes the model from its random streams; the model maps images to logits.
        data_axis: a bound axis along which `train`'s images are one batch: BatchNorm normalizes by the moments
            of all of them. None: each call's images are a batch of their own.

    Returns:
        A `FunctionalModel`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from hwa_jax import models
        >>> model = from_nnx(lambda rngs: models.create("mlp", num_classes=10, input_shape=(8, 8, 1), rngs=rngs))
        >>> params, batch_stats = model.init(jax.random.key(0))
        >>> model.predict(params, batch_stats, jnp.zeros((2, 8, 8, 1))).shape
        (2, 10)
    """
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    train_parts = _split(_with_batch_norm(abstract, axis_name=data_axis), "train")
    eval_parts = _split(abstract, "eval")
    # Running statistics that keep nothing of the past are the batch's own.
    moments_parts = _split(_with_batch_norm(abstract, momentum=0.0), "train")

    def call(parts, params, batch_stats, images, key):
        graphdef, *abstract_states = parts
        rng_state = _rekey(abstract_states[2], key)
        model = nnx.merge(
            graphdef, *(_fill(state, pure) for state, pure in zip(abstract_states, (params, batch_stats, rng_state)))
        )
        logits = model(images)
        return logits.astype(jnp.float32), _pure(nnx.state(model, nnx.BatchStat))

    def init(key):
        _, params, batch_stats, _ = nnx.split(build(nnx.Rngs(key)), nnx.Param, nnx.BatchStat, ...)
        return _pure(params), _pure(batch_stats)

    def predict(params, batch_stats, images):
        return call(eval_parts, params, batch_stats, images, jax.random.key(0))[0]

    def moments(params, batch_stats, images):
        return as_pairs(call(moments_parts, params, batch_stats, images, jax.random.key(0))[1])

    return FunctionalModel(jax.jit(init), lambda *args: call(train_parts, *args), predict, moments)


def as_pairs(batch_stats: Any) -> Any:
    """{"mean": m, "var": v} nodes as pairs (m, v), the form that `recalibrate_batch_stats` pools.

    Example:
        >>> as_pairs({"norm": {"mean": 0.0, "var": 1.0}})
        {'norm': (0.0, 1.0)}
    """
    return jax.tree.map(lambda node: (node["mean"], node["var"]), batch_stats, is_leaf=_is_statistics)


def from_pairs(pairs: Any) -> Any:
    """The inverse of `as_pairs`.

    Example:
        >>> from_pairs({"norm": (0.0, 1.0)})
        {'norm': {'mean': 0.0, 'var': 1.0}}
    """
    return jax.tree.map(
        lambda pair: {"mean": pair[0], "var": pair[1]}, pairs, is_leaf=lambda node: isinstance(node, tuple)
    )


def _is_statistics(node):
    return isinstance(node, dict) and set(node) == {"mean", "var"}


def _split(abstract, mode):
    model = nnx.clone(abstract)
    getattr(model, mode)()
    return nnx.split(model, nnx.Param, nnx.BatchStat, ...)


def _with_batch_norm(abstract, **attributes):
    model = nnx.clone(abstract)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            for name, value in attributes.items():
                setattr(module, name, value)
    return model


def _pure(state):
    """A pure dictionary whose keys are strings, list positions too, so that paths and files agree."""

    def rename(node):
        return {str(key): rename(value) for key, value in node.items()} if isinstance(node, dict) else node

    return rename(nnx.to_pure_dict(state))


def _fill(abstract_state, pure):
    state = jax.tree.map(lambda leaf: leaf, abstract_state)
    # Outside jit BatchNorm would write its statistics into a NumPy array of the caller.
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, pure))
    return state


def _rekey(abstract_state, key):
    """Random streams for one call: every stream's key is folded from `key`, every count starts at zero."""
    pure = nnx.to_pure_dict(abstract_state)
    leaves, treedef = jax.tree.flatten(pure)
    fresh = [
        jax.random.fold_in(key, index) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.zeros(leaf.shape, leaf.dtype)
        for index, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, fresh)
