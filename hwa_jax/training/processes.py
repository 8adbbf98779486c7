"""Several processes that run one training together: joining, deciding, sharing and ending.

All of them run the same program, and every array over the mesh is one array of all of them. Process 0 leads:
it alone reads and writes the work directory, and the others hear from it what they need to know. So the
directory need not be seen by the other hosts. With one process nothing here communicates.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from hwa_jax import particles
from hwa_jax.errors import UserError
from hwa_jax.training import peers

# The runtime's own limit of silence; it ends processes by an abort that names nobody.
_RUNTIME_TIMEOUT = 100
# With these the runtime's errors begin where a connection was closed; not where memory runs out, say.
_STATUS_OF_OTHERS = re.compile("(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): ")


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None, *, peer_timeout: int = 20,
) -> None:
    """Makes this process one of several; before anything else asks JAX for its devices.

    Args:
        coordinator: "host:port" where process 0 can be reached, for all processes the same. Without
            arguments JAX finds all three under Slurm, Open MPI, Kubernetes and on TPU pods.
        num_processes: how many there are.
        process_id: which of them this is, from 0.
        peer_timeout: seconds of silence after which another process is lost, and this one ends with a line that
            names it. In a collective Gloo gives up after 30 s by itself.

    Raises:
        UserError: no such cluster was detected, or arguments that do not fit together.
    """
    # Of CPUs; elsewhere it has no effect.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=max(_RUNTIME_TIMEOUT, 2 * peer_timeout),
        )
    except ValueError as error:
        raise UserError(
            f"--distributed: no cluster was detected ({error}): give --coordinator, --num_processes and --process_id"
        ) from error
    if are_several():
        peers.watch(peer_timeout)
        _meet()


def are_several() -> bool:
    """Whether this process has joined others. Unlike JAX's own count it starts no devices.

    Example:
        >>> are_several()
        False
    """
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_leader() -> bool:
    """Whether this process reads and writes the work directory.

    Example:
        >>> is_leader()
        True
    """
    return jax.process_index() == 0


def on_leader(act: Callable[[], Any]) -> Any:
    """What `act` returns on process 0, which alone runs it; None on the others. A `UserError` is raised on all.

    Example:
        >>> on_leader(lambda: 1)
        1
    """
    if not are_several():
        return act()
    result, error = None, None
    if is_leader():
        try:
            result = act()
        except UserError as raised:
            error = raised
    message = _from_leader(error and str(error))
    if message is not None:
        raise error or UserError(message)
    return result


def from_leader(decide: Callable[[], Any]) -> Any:
    """What `decide` returns on process 0, on all processes; of types that JSON keeps. Errors as by `on_leader`.

    Example:
        >>> from_leader(lambda: [1, 2])
        [1, 2]
    """
    decision = on_leader(decide)
    return decision if not are_several() else _from_leader(decision)


def share(tree: Any, like: Any) -> Any:
    """The arrays of process 0 on all processes, bit for bit; one leaf at a time.

    Args:
        tree: NumPy leaves; only that of process 0 matters.
        like: a tree of that structure, shapes and dtypes; its leaves may be `jax.ShapeDtypeStruct`.

    Example:
        >>> share({"w": np.ones(2)}, None)
        {'w': array([1., 1.])}
    """
    if not are_several():
        return tree

    def shared(struct, leaf):
        shape, dtype = struct.shape, np.dtype(struct.dtype)
        flat = np.ascontiguousarray(leaf).reshape(-1) if is_leader() else np.zeros(struct.size, dtype)
        # As bytes: sums of floats lose the sign of zero, and float64 where JAX does not have it.
        received = multihost_utils.broadcast_one_to_all(flat.view(np.uint8))
        return received.view(dtype).reshape(shape)

    return jax.tree.map(shared, like, tree if is_leader() else like)


def to_host(tree: Any) -> Any:
    """NumPy leaves of arrays over devices of any process; all processes take part.

    A leaf that lies on several processes is whole on each of their devices for a moment.

    Example:
        >>> to_host({"w": jax.numpy.ones(2)})
        {'w': array([1., 1.], dtype=float32)}
    """
    return jax.tree.map(_leaf_to_host, tree)


def to_leader(tree: Any) -> Any:
    """A tree that process 0 can store, None on the others, which hold no more than a leaf on the way."""
    if not are_several():
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    if is_leader():
        return jax.tree.unflatten(treedef, [_leaf_to_host(leaf) for leaf in leaves])
    for leaf in leaves:
        _leaf_to_host(leaf)
    return None


def explain_lost(error: BaseException, peer_timeout: int) -> None:
    """Returns where `error` is this process's own; where it comes of the loss of another one, the watch ends this process with its line.

    Args:
        error: what a step or a collective raised. Of a lost process it says no more than that a connection was closed.
        peer_timeout: as of `join`.
    """
    # By its text: where it is dispatched, JAX makes a ValueError of the runtime's error.
    if _STATUS_OF_OTHERS.match(str(error)):
        peers.wait_for_verdict(peer_timeout)


def end_all(reason: str, code: int) -> None:
    """Ends this process, one of several, and within seconds the others, which say why.

    Args:
        reason: one line.
        code: the exit code of all.
    """
    # Where process 0 is gone, the runtime ends the others.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        peers.tell(reason, code)
    # Process 0 holds the place where the others look.
    time.sleep(3 * peers.POLL_SECONDS if is_leader() else 0)
    peers.end(code)


def _meet():
    """Connects all devices, and each process with process 0, now: Gloo fails where one comes 30 s later than another.

    Loading data, or compiling on a busy machine, may take longer than that.
    """
    mesh = particles.device_mesh()
    ones = particles.put(np.ones(mesh.size, np.float32), NamedSharding(mesh, PartitionSpec("device")))
    jax.block_until_ready(jax.jit(jnp.sum)(ones))
    _from_leader(None)


def _from_leader(value):
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = text if is_leader() else np.zeros(size, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(text).tobytes())


def _leaf_to_host(leaf):
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)
