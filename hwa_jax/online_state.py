"""States of the transforms in `hwa_jax.online`."""

from typing import NamedTuple

import jax
import optax

from hwa_jax.outer import OuterState


class OnlineAverageState(NamedTuple):
    """State of `online_average`.

    Attributes:
        count: int32 scalar, completed steps; under vmap it may carry the replica axis, and all
            replicas hold the same value.
    """

    count: jax.Array


class OnlineAverageOuterState(NamedTuple):
    """State of `online_average` with a `sync_dtype` or an `outer_optimizer`.

    Attributes:
        count: as in `OnlineAverageState`.
        outer: what is kept since the last average, of each replica, equal on all of them.
    """

    count: jax.Array
    outer: OuterState


class WithOnlineAverageState(NamedTuple):
    """State of `with_online_average`.

    Attributes:
        count: int32 scalar, completed steps; may carry the replica axis, equal on all replicas.
        distance: float32 scalar, ‖(p_k + u_k) - W̄‖ at the last average, just before the weights became
            W̄; this replica's, whose root mean square over replicas is their spread. It costs no communication.
            For stacked trees it is that root mean square, a second small all-reduce where they are sharded.
        inner_state: state of the inner optimizer, with or without the replica axis as its own.
    """

    count: jax.Array
    distance: jax.Array
    inner_state: optax.OptState


class WithOnlineAverageOuterState(NamedTuple):
    """State of `with_online_average` with a `sync_dtype` or an `outer_optimizer`.

    Attributes:
        count, distance, inner_state: as in `WithOnlineAverageState`; the distance is that to the mean of the replicas.
        outer: what is kept since the last average, of each replica, equal on all of them.
    """

    count: jax.Array
    distance: jax.Array
    inner_state: optax.OptState
    outer: OuterState
