"""Sums over a named axis that travel as one message where each array would be one of its own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree


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
    raveled = [ravel_pytree([leaves[place] for place in places]) for places in groups.values()]
    sums = operation([vector for vector, _ in raveled], axis_name)
    for places, (_, unravel), vector in zip(groups.values(), raveled, sums):
        for place, leaf in zip(places, unravel(vector)):
            leaves[place] = leaf
    return jax.tree.unflatten(treedef, leaves)
