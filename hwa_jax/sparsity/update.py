"""An optax transform under which pruned weights stay exactly zero, whatever the optimizer."""


import jax
import jax.numpy as jnp
import optax

from hwa_jax.sparsity.checks import check, is_masked_node
from hwa_jax.sparsity.masks import zero_outside


def sparse_update(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that weights, moments and averages in its state are exactly zero outside a mask.

    With m the mask, g the gradient, s the state and p the weights, one step is

        u, s' = inner.update(g∘m, s∘m, p∘m)        no trace of pruned weights, in norms neither
        update = u where m is True, -p elsewhere    p + (-p) = 0 exactly
        state = s'∘m

    so momentum and weight decay revive nothing, and the first step under a new mask brings the newly
    pruned weights to zero. NaN and infinite weights cannot be brought to zero by adding:
    `hwa_jax.masks.apply` can. Parts of the state that are shaped like the weights are found by
    `optax.tree.map_params`; row and column statistics (Adafactor) are left as they are.

    The mask is data: pass it to the jitted step as an argument, and a new one compiles nothing. Under
    vmap it stays unbatched, shared by all particles; stacked weights [K, ...] in plain jit take the
    mask of one replica as well. Inside `with_online_average` pass it on:
    `with_online_average(sparse_update(inner), ...)` hands extra arguments down. A gradient that the
    optimizer itself computes (SAM's `grad_fn`) reaches it unmasked; what comes out is masked.

    Updates of prunable leaves come out in the wider dtype of update and weight: in a narrower one -p
    would be rounded.

    Args:
        inner: any optax optimizer, schedule, wrapper or chain.

    Returns:
        A `optax.GradientTransformationExtraArgs`: `update(g, state, params, mask=mask, **extra_args)`.
        Other extra arguments go to `inner`.

    Raises:
        ValueError: at init, an `inner` that `optax.tree.map_params` cannot follow (`optax.flatten`); at
            update, `params` or `mask` missing, or a mask that does not fit; it names the leaf.

    Example:
        >>> tx = sparse_update(optax.sgd(0.5, momentum=0.9))
        >>> params, mask = {"kernel": jnp.array([1.0, 2.0])}, {"kernel": jnp.array([True, False])}
        >>> updates, state = tx.update(params, tx.init(params), params, mask=mask)
        >>> print(optax.apply_updates(params, updates)["kernel"])
        [0.5 0. ]
    """
    inner = optax.with_extra_args_support(inner)

    def init(params):
        state = inner.init(params)
        try:
            optax.tree.map_params(inner, lambda leaf: leaf, state)
        except Exception as error:
            raise ValueError(
                f"sparse_update: optax.tree.map_params cannot tell which parts of this optimizer's state are shaped like "
                f"the weights ({error}); give labels of optax.partition as a tree, not as a function, and leave out optax.flatten"
            ) from error
        return state

    def update(updates, state, params=None, *, mask=None, **extra_args):
        if params is None or mask is None:
            missing = "params" if params is None else "mask"
            raise ValueError(f"sparse_update: {missing}=None; call update(updates, state, params, mask=mask)")
        check(mask, params, stacked=True)
        updates, state = inner.update(
            zero_outside(mask, updates), _zero_state(inner, mask, state), zero_outside(mask, params), **extra_args
        )
        return _to_zero(mask, updates, params), _zero_state(inner, mask, state)

    return optax.GradientTransformationExtraArgs(init, update)


def _zero_state(inner, mask, state):
    # Whole trees, not leaves: SM3 keeps a list of vectors for every matrix.
    return optax.tree.map_params(inner, lambda tree: zero_outside(mask, tree), state, is_leaf=lambda _: True)


def _to_zero(mask, updates, params):
    def leaf(keep, update, weight):
        return update if is_masked_node(keep) else jnp.where(keep, update, -weight)

    return jax.tree.map(leaf, mask, updates, params, is_leaf=is_masked_node)
