"""Elementwise arithmetic of a jaxpr, in NumPy.

For a few images, calling a compiled program costs more than the few additions in it.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn, Literal, Var

# The primitives of bias, ReLU and normalization with running statistics.
_FUNCTIONS = {
    "add": np.add, "sub": np.subtract, "div": np.divide, "max": np.maximum,
    "mul": lambda x, y, *, out_dtype=None: np.multiply(x, y, dtype=out_dtype),
    "convert_element_type": lambda x, *, new_dtype, **_: x.astype(new_dtype),
    "reshape": lambda x, *, new_sizes, **_: x.reshape(new_sizes),
    "transpose": lambda x, *, permutation: x.transpose(permutation),
}


def is_elementwise(equations: Sequence[JaxprEqn]) -> bool:
    """Whether these can run in NumPy; calls of inner functions are looked into."""
    return all(is_elementwise(_inner(eqn).eqns) if _inner(eqn) else eqn.primitive.name in _FUNCTIONS for eqn in equations)


class NumpyPiece:
    """Equations as a function of NumPy or JAX arrays.

    Args:
        equations: for which `is_elementwise` holds.
        inputs: what calls give values to.
        outputs: what calls return, as a list.
        constants: values that are known already.

    Example:
        >>> import jax
        >>> jaxpr = jax.make_jaxpr(lambda x: jax.nn.relu(x + 1))(np.float32(0)).jaxpr
        >>> print(NumpyPiece(jaxpr.eqns, jaxpr.invars, jaxpr.outvars, {})(np.float32(2)))
        [np.float32(3.0)]
    """

    def __init__(self, equations: Sequence[JaxprEqn], inputs: Sequence[Var], outputs: Sequence[Var], constants: Mapping[Var, Any]):
        self._values = [None] * len(inputs)
        self._calls = []
        slots = {variable: index for index, variable in enumerate(inputs)}
        slots |= {variable: self._new_slot(np.asarray(value)) for variable, value in constants.items()}
        self._add(equations, slots)
        self._outputs = [slots[variable] for variable in outputs]

    def __call__(self, *inputs: Any) -> list[np.ndarray]:
        """The outputs."""
        values = [*map(np.asarray, inputs), *self._values[len(inputs):]]
        for function, operands, result in self._calls:
            values[result] = function(*[values[slot] for slot in operands])
        return [values[slot] for slot in self._outputs]

    def _new_slot(self, value=None):
        self._values.append(value)
        return len(self._values) - 1

    def _add(self, equations, slots):
        for eqn in equations:
            # A Python number would make NumPy compute in float64.
            operands = [self._new_slot(np.asarray(v.val, v.aval.dtype)) if isinstance(v, Literal) else slots[v] for v in eqn.invars]
            inner = _inner(eqn)
            if inner:
                within = dict(zip(inner.invars, operands))
                self._add(inner.eqns, within)
                slots.update(zip(eqn.outvars, (within[variable] for variable in inner.outvars)))
            else:
                [result] = eqn.outvars
                slots[result] = self._new_slot()
                function = functools.partial(_FUNCTIONS[eqn.primitive.name], **eqn.params)
                self._calls.append((function, operands, slots[result]))


def _inner(eqn):
    """The jaxpr of a jitted function or of one with its own derivative, such as ReLU; None for other primitives."""
    closed = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
    return None if closed is None or closed.consts else closed.jaxpr
