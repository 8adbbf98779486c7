"""Networks as programs of SciPy products and, between them, compiled pieces.

The network is traced once. Its jaxpr is cut at the products that sparse matrices take over; what lies between
two of them is compiled, or runs in NumPy where it is elementwise arithmetic on small arrays. What depends on
weights alone is computed once.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, Primitive, Var

from hwa_jax.training.numpy_pieces import NumpyPiece, is_elementwise

# Elements of an array from which calling a compiled piece costs less than NumPy's new memory for every operation.
_SMALL = 2**17

_product = Primitive("sparse_product")
_product.def_abstract_eval(lambda columns, *, name, num_rows: columns.update(shape=(num_rows, columns.shape[1])))


def sparse_product(name: str, num_rows: int, columns: jax.Array) -> jax.Array:
    """Where a program is cut: float32 [num_rows, m], the matrix of that name times columns [k, m]."""
    return _product.bind(columns.astype(jnp.float32), name=name, num_rows=num_rows)


class _Step(NamedTuple):
    run: Callable[..., Sequence[Any]]
    inputs: list[Var]
    outputs: list[Var]


class Program:
    """A function of weights and images, for images of one shape, on the CPU.

    Args:
        function: (weights by name, images) -> logits; traceable, may call `sparse_product`.
        weights: shapes and dtypes by name.
        images: shape and dtype.
        matrices: name -> sparse matrix, for `sparse_product`.
        read: name -> array; asked for those weights alone that are used beside the matrices.

    Attributes:
        num_bytes: of matrices and arrays that the program holds.

    Example:
        >>> import scipy.sparse
        >>> struct = jax.ShapeDtypeStruct((2, 1), np.float32)
        >>> double = {"double": scipy.sparse.csr_array(2 * np.eye(2, dtype=np.float32))}
        >>> program = Program(lambda weights, x: sparse_product("double", 2, x) + weights["bias"], {"bias": struct}, struct,
        ...                   double, lambda name: np.ones((2, 1), np.float32))
        >>> program(np.array([[3], [4]], np.float32)).tolist()
        [[7.0], [9.0]]
    """

    def __init__(
        self, function: Callable[..., jax.Array], weights: Mapping[str, jax.ShapeDtypeStruct], images: jax.ShapeDtypeStruct,
        matrices: Mapping[str, Any], read: Callable[[str], jax.Array],
    ):
        self._cpu = jax.local_devices(backend="cpu")[0]
        closed = jax.make_jaxpr(function)(dict(weights), images)
        *variables, self._images = closed.jaxpr.invars
        [self._logits] = closed.jaxpr.outvars
        equations, used = _needed(closed.jaxpr.eqns, self._logits)
        known = dict(zip(closed.jaxpr.constvars, closed.consts))
        # A dictionary is flattened in the order of its keys.
        known |= {variable: read(name) for variable, name in zip(variables, sorted(weights)) if variable in used}
        with jax.default_device(self._cpu):
            equations = _fold(equations, known)
            self._steps = _steps(equations, self._logits, known, matrices)
        used_by_steps = _needed(equations, self._logits)[1]
        products = {eqn.params["name"] for eqn in equations if eqn.primitive is _product}
        self.num_bytes = sum(value.nbytes for variable, value in known.items() if variable in used_by_steps) + sum(
            array.nbytes for name in products for array in (matrices[name].data, matrices[name].indices, matrices[name].indptr)
        )

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits of images."""
        values = {self._images: images}
        with jax.default_device(self._cpu):
            for step in self._steps:
                values.update(zip(step.outputs, step.run(*[values[variable] for variable in step.inputs])))
        return np.asarray(values[self._logits])


def _needed(equations, result):
    """The equations on which the result depends, and all variables that they read."""
    used, kept = {result}, []
    for eqn in reversed(equations):
        if used.intersection(eqn.outvars):
            kept.append(eqn)
            used.update(_variables(eqn))
    return kept[::-1], used


def _variables(eqn):
    return [variable for variable in eqn.invars if not isinstance(variable, Literal)]


def _fold(equations, known):
    """Computes what follows from known values, into `known`; returns the other equations."""
    rest = []
    for eqn in equations:
        if eqn.primitive is not _product and all(variable in known for variable in _variables(eqn)):
            _evaluate([eqn], known)
        else:
            rest.append(eqn)
    return rest


def _steps(equations, result, known, matrices):
    groups = [[]]
    for eqn in equations:
        if eqn.primitive is _product:
            groups += [[eqn], []]
        else:
            groups[-1].append(eqn)
    steps, later = [], {result}
    for group in reversed([group for group in groups if group]):
        made = dict.fromkeys(variable for eqn in group for variable in eqn.outvars)
        outputs = [variable for variable in made if variable in later]
        read = dict.fromkeys(variable for eqn in group for variable in _variables(eqn) if variable not in made)
        constants = {variable: known[variable] for variable in read if variable in known}
        inputs = [variable for variable in read if variable not in known]
        steps.append(_Step(_run(group, inputs, outputs, constants, matrices), inputs, outputs))
        later |= set(inputs)
    return steps[::-1]


def _run(equations, inputs, outputs, constants, matrices):
    if equations[0].primitive is _product:
        matrix = matrices[equations[0].params["name"]]
        return lambda columns: [matrix @ np.asarray(columns)]

    if is_elementwise(equations) and all(variable.aval.size < _SMALL for eqn in equations for variable in eqn.outvars):
        return NumpyPiece(equations, inputs, outputs, constants)

    @jax.jit
    def piece(constants, *values):
        environment = dict(zip((*names, *inputs), (*constants, *values)))
        _evaluate(equations, environment)
        return [environment[variable] for variable in outputs]

    names, arrays = list(constants), [jnp.asarray(value) for value in constants.values()]
    return functools.partial(piece, arrays)


def _evaluate(equations, environment):
    for eqn in equations:
        operands = [variable.val if isinstance(variable, Literal) else environment[variable] for variable in eqn.invars]
        results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
        environment.update(zip(eqn.outvars, results if eqn.primitive.multiple_results else [results]))
