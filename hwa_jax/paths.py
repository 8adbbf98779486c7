"""Names of leaves: their "/"-joined paths, and regular expressions over them."""

import re
from typing import Any

import jax

from hwa_jax.errors import UserError


def leaf_name(path: tuple) -> str:
    """The "/"-joined path of a leaf, as `jax.tree_util` gives its key path; "(root)" where the tree is one leaf.

    Example:
        >>> [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path({"dense": [0, {"bias": 0}]})]
        ['dense/0', 'dense/1/bias']
    """
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(root)"


def matching(pattern: str, params: Any, field: str = "pattern") -> Any:
    """A tree of bools: the leaves whose "/"-joined path the regular expression is found in.

    Raises:
        UserError: a pattern that is no regular expression or matches nothing; it names `field`.

    Example:
        >>> matching("kernel$", {"dense": {"bias": 0, "kernel": 0}})
        {'dense': {'bias': False, 'kernel': True}}
    """
    try:
        found = jax.tree_util.tree_map_with_path(lambda path, _: re.search(pattern, leaf_name(path)) is not None, params)
    except re.error as error:
        raise UserError(f"{field}={pattern!r} is no regular expression: {error}") from error
    if not any(jax.tree.leaves(found)):
        names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        hint = f"paths look like {names[0]}" if names else "there are none"
        raise UserError(f"{field}={pattern!r} matches no parameter; {hint}")
    return found
