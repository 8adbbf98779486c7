"""A run that goes on with another number of replicas: all of them restart from the outer weights."""

from collections.abc import Sequence

import jax
import numpy as np

from hwa_jax.replica_mean import is_averaged
from hwa_jax.training.step import STATE_AXES, Progress, TrainState


def stored_like(like: TrainState, num_replicas: int) -> TrainState:
    """Shapes and dtypes of a TrainState of another number of replicas.

    Args:
        like: leaves with a shape and a dtype, stacked.
        num_replicas: what replaces their K.

    Example:
        >>> struct = jax.ShapeDtypeStruct((2, 3), np.float32)
        >>> stored_like(TrainState(jax.ShapeDtypeStruct((), np.int32), struct, (), (), (), ()), 5).params.shape
        (5, 3)
    """
    return _map_stacked(lambda leaf: jax.ShapeDtypeStruct((num_replicas, *leaf.shape[1:]), leaf.dtype), like)


def restarted(state: TrainState, num_replicas: int, weights: Sequence[float] | None = None) -> TrainState:
    """Replicas that all start where the stored ones meet: at the outer weights of that step.

    BatchNorm statistics, the optimizer's state and other averages of the weights become means too, as at an average
    with the policy "average": the mean of momenta is the momentum that the mean has had, and no step is of another
    size because moments begin at zero. Counts, which all replicas share, are kept. The sums for the log begin again.

    Args:
        state: NumPy leaves, those of the stored replicas along axis 0.
        num_replicas: K from now on.
        weights: how much each of the stored replicas counts; None: all the same.

    Example:
        >>> stored = TrainState(np.int32(7), np.array([[1.0], [3.0]]), (), np.array([4, 4]), (), Progress.zero())
        >>> state = restarted(stored, 3)
        >>> state.params.tolist(), state.opt_state.tolist(), int(state.step)
        ([[2.0], [2.0], [2.0]], [4, 4, 4], 7)
    """

    def met(leaf):
        if not is_averaged(leaf):
            return leaf[0]
        return np.average(leaf.astype(np.result_type(leaf, np.float64)), axis=0, weights=weights).astype(leaf.dtype)

    def repeated(leaf):
        return np.broadcast_to(leaf, (num_replicas, *leaf.shape))

    one = _map_stacked(met, state._replace(progress=()))._replace(progress=jax.device_get(Progress.zero()))
    return _map_stacked(repeated, one)


def _map_stacked(function, state):
    return TrainState(*(part if axis is None else jax.tree.map(function, part) for part, axis in zip(state, STATE_AXES)))
