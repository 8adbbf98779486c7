"""The methods that a comparison knows: display name, one line of explanation, settings."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Method:
    """How a report speaks of one training method.

    Attributes:
        name: what tables and plots call it.
        description: one line for a reader who has never heard of it.
        settings: fields of a cell that this method uses; others do not tell its rows apart.
    """

    name: str
    description: str
    settings: tuple[str, ...] = ()


SETTINGS = {
    "num_replicas": "K",
    "sync_period": "H",
    "window_size": "I",
    "averaging": "averaging",
    "replica_batch_sizes": "batches",
}

METHODS = {
    "plain": Method(
        "plain",
        "one network, the optimizer and schedule as they are, evaluated at its last weights.",
    ),
    "ema": Method(
        "EMA", "plain training, evaluated at an exponential moving average of its weights."
    ),
    "online": Method(
        "online average",
        "K replicas train on batch orders of their own; every H steps all of them continue from "
        "the mean of their weights (local SGD). Evaluated at that mean.",
        ("num_replicas", "sync_period", "averaging", "replica_batch_sizes"),
    ),
    "offline_window": Method(
        "offline window average",
        "plain training, evaluated at the mean of the last I weights, stored every H steps.",
        ("sync_period", "window_size"),
    ),
    "offline_uniform": Method(
        "offline uniform average",
        "plain training, evaluated at the mean of all weights since a chosen start, stored every H "
        "steps (SWA).",
        ("sync_period",),
    ),
    "lookahead": Method(
        "Lookahead",
        "every few steps the weights are pulled back part of the way to where they were before.",
    ),
    "sam": Method(
        "SAM",
        "sharpness-aware minimization: each step takes its gradient at a nearby worse point, "
        "which needs two gradients, so its passes over the data count double.",
    ),
    "hwa": Method(
        "HWA",
        "hierarchical weight averaging: the online average, evaluated at the mean of its last I "
        "synchronized weights.",
        ("num_replicas", "sync_period", "window_size", "averaging", "replica_batch_sizes"),
    ),
}


def method_named(key: str) -> Method:
    """The known method, or for any other key a bare one that all settings tell apart.

    Example:
        >>> method_named("hwa").name, method_named("my_method").name
        ('HWA', 'my_method')
    """
    return METHODS.get(key) or Method(key, "not described here.", tuple(SETTINGS))
