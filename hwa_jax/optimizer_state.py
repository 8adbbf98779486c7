"""Starting an optimizer again without forgetting where in its schedule the run is."""

from typing import Any

import jax
import optax

# States that say where a run is, not what an optimizer has gathered.
_KEPT_STATES = (
    optax.ScaleByScheduleState,
    optax.InjectStatefulHyperparamsState,
    optax.InjectHyperparamsState,
    optax.MultiStepsState,
    optax.AddNoiseState,
    optax.contrib.DifferentiallyPrivateAggregateState,
    optax.contrib.ReduceLROnPlateauState,
)


def reset_state(old: Any, fresh: Any) -> Any:
    """`fresh`, with those states of `old` that say where the run is; what they wrap is fresh again.

    Counts of schedules, injected hyperparameters and the like are kept; moments, and the counts that belong to them, are not.

    Args:
        old: state of an optax optimizer.
        fresh: `init` of the same optimizer.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = optax.sgd(lambda step: 0.1, momentum=0.9)
        >>> fresh = tx.init(jnp.zeros(2))
        >>> _, old = tx.update(jnp.ones(2), fresh)
        >>> trace, schedule = reset_state(old, fresh)
        >>> print(trace.trace, schedule.count)
        [0. 0.] 1
    """

    def is_kept(node):
        return isinstance(node, _KEPT_STATES)

    def choose(new, previous):
        if not is_kept(new):
            return new
        wrapped = {"inner_state", "inner_opt_state"}.intersection(new._fields)
        return previous._replace(**{name: reset_state(getattr(previous, name), getattr(new, name)) for name in wrapped})

    return jax.tree.map(choose, fresh, old, is_leaf=is_kept)
