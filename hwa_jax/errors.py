"""The exceptions that programs turn into a line of text."""


class UserError(ValueError):
    """Input that its author can fix: a field, a file, a directory, a flag.

    The message is one line that names the field, the value received and the fix.
    Programs in ``experiments/`` print it as ``error: ...`` and exit with code 2;
    everything else keeps its traceback.

    Example:
        >>> raise UserError("hwa.sync_period=0: must be at least 1 step")
        Traceback (most recent call last):
        ...
        hwa_jax.errors.UserError: hwa.sync_period=0: must be at least 1 step
    """


class Diverged(UserError):
    """A loss, a gradient or what a layer put out was not finite. Comparisons record it, and go on with their next training."""
