"""Sums over a named axis that travel as one message where each array would be one of its own."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def together(operation: Callable[[Any, Any], Any], tree: Any, axis_name: Any) -> Any:
    """`operation` (lax.psum or lax.pmean) of all leaves.

    NCCL and TPUs carry one all-reduce of many arrays at once. XLA:CPU hands them to Gloo one by one, and between hosts
    each waits for the network's latency several times over: there the arrays of a dtype are sent as one vector.

    Args:
        operation: elementwise over a named axis.
        tree: of arrays of any shapes and dtypes.
        axis_name: as the operation takes it.

    Returns:
        A tree of the same structure, shapes and dtypes. The sums are the same, but where three or more processes are
        summed their order depends on an element's place in the vector.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> sums = jax.vmap(lambda x: together(jax.lax.psum, [x, 2 * x], "particle"), axis_name="particle")
        >>> print(*sums(jnp.array([1.0, 2.0])))
        [3. 3.] [6. 6.]
    """
    if jax.default_backend() != "cpu" or jax.process_count() == 1:
        return operation(tree, axis_name)
    leaves, treedef = jax.tree.flatten(tree)
    groups: dict[Any, list[int]] = {}
    for place, leaf in enumerate(leaves):
        groups.setdefault(jnp.result_type(leaf), []).append(place)
    vectors = [jnp.concatenate([jnp.ravel(leaves[place]) for place in places]) for places in groups.values()]
    for places, vector in zip(groups.values(), operation(vectors, axis_name)):
        ends = list(itertools.accumulate(jnp.size(leaves[place]) for place in places))
        for place, part in zip(places, jnp.split(vector, ends[:-1])):
            leaves[place] = part.reshape(jnp.shape(leaves[place]))
    return jax.tree.unflatten(treedef, leaves)
