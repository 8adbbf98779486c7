"""Convolutions by oneDNN on a CPU, for those who switch them on: docs/cpu.md has the times.

    make onednn
    HWA_JAX_CONV=onednn python experiments/train_hwa.py ...

The first line installs the extra ``onednn`` (Linux on x86-64) and builds onednn.cc with g++. With the
variable set, ``conv_general_dilated`` and its derivatives of every order use oneDNN on CPUs where
``supports`` says so. Everything else is as without it. Numbers agree to rounding.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hwa_jax.errors import UserError

SETTING = "HWA_JAX_CONV"
_PACKAGE = "onednn-cpu-gomp"
_SOURCE = pathlib.Path(__file__).with_suffix(".cc")
_TARGET = "hwa_jax_convolution"
_ROLES = ("lhs", "rhs", "out")


def switched_on() -> bool:
    """Whether the environment has ``HWA_JAX_CONV=onednn``; asked whenever a program is lowered.

    Raises:
        UserError: the variable has another value.
    """
    value = os.environ.get(SETTING, "")
    if value not in ("", "onednn"):
        raise UserError(f"{SETTING}={value}: the only value is onednn; unset, XLA computes convolutions")
    return bool(value)


def is_built() -> bool:
    """Whether ``build`` has run in this environment, on the source of this version."""
    try:
        return _library().exists()
    except UserError:
        return False


def supports(convolution) -> bool:
    """Whether oneDNN computes this convolution, as hwa_jax.conv describes it.

    It must be two-dimensional and float32, NHWC * HWIO -> NHWC, without dilated input, batch groups
    and negative padding. Strides, dilated windows and feature groups are free.
    """
    structs = [getattr(convolution, role) for role in _ROLES]
    if len(structs[0].shape) != 4:
        return False
    nhwc = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, ("NHWC", "HWIO", "NHWC"))
    return (
        convolution.dimension_numbers == nhwc
        and all(struct.dtype == jnp.float32 and struct.size > 0 for struct in structs)
        and set(convolution.option("lhs_dilation") or [1]) == {1}
        and convolution.option("batch_group_count") == 1
        and min(map(min, _padding(convolution))) >= 0
    )


def preferred(otherwise, platform):
    """The lowering rule of hwa_jax.conv: oneDNN where it is used, else ``otherwise``."""
    if platform != "cpu":
        return otherwise

    def rule(context, left, right, *, result, convolution, axes):
        if switched_on() and supports(convolution):
            return _lower(context, left, right, result, convolution, axes)
        return otherwise(context, left, right, result=result, convolution=convolution, axes=axes)

    return rule


def build() -> pathlib.Path:
    """Compiles onednn.cc into the folder of oneDNN's own library; returns the path.

    Raises:
        UserError: the extra ``onednn`` is not installed, or there is no g++.
        subprocess.CalledProcessError: the compiler has written why it failed.
    """
    header = _installed(f"onednn-devel-{_PACKAGE.removeprefix('onednn-')}", "include/dnnl.hpp")
    library = _library()
    command = ["g++", "-O2", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-w", str(_SOURCE)]
    command += [f"-I{header.parent}", f"-I{jax.ffi.include_dir()}", "-o", str(library)]
    command += [str(library.with_name("libdnnl.so.3")), "-Wl,-rpath,$ORIGIN"]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        raise UserError("g++ is not installed: oneDNN's convolutions are compiled with it") from None
    return library


def main() -> None:
    """`build` as a command: prints the path, or one line that says what is missing."""
    try:
        print(build())
    except UserError as error:
        sys.exit(f"error: {error}")


def _library():
    """Beside oneDNN, so that each environment has its own; a changed source is another file."""
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:8]
    return _installed(_PACKAGE, "libdnnl.so.3").with_name(f"libhwa_jax_onednn-{digest}.so")


def _installed(package, path):
    try:
        files = importlib.metadata.files(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{package} is not installed: run `make onednn`") from None
    found = next((file.locate() for file in files or () if file.match(path)), None)
    if found is None:
        raise UserError(f"{package} has no {path}: install it again, run `make onednn`")
    return pathlib.Path(found).resolve()


@functools.cache
def _register():
    if not is_built():
        raise UserError(f"{SETTING}=onednn: it is not built here: run `make onednn`, or unset {SETTING}")
    handler = getattr(ctypes.CDLL(str(_library())), _TARGET)
    jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(handler), platform="cpu")


def _lower(context, left, right, result, convolution, axes):
    """One call computes the members of all axes."""
    _register()
    sizes = [axis.size for axis in axes]
    attributes = {
        "numbers": np.array([_ROLES.index(result), *_numbers(convolution)], np.int64),
        "left_members": _members(sizes, [axis.left for axis in axes]),
        "right_members": _members(sizes, [axis.right for axis in axes]),
    }
    return jax.ffi.ffi_lowering(_TARGET)(context, left, right, **attributes)


def _numbers(convolution):
    """Shapes and geometry in the order of onednn.cc."""
    lhs, rhs, out = (getattr(convolution, role).shape for role in _ROLES)
    low, high = zip(*_padding(convolution))
    dilation = convolution.option("rhs_dilation") or (1, 1)
    shapes = (*lhs, *out[1:], *rhs[:2], convolution.option("feature_group_count"))
    return (*shapes, *convolution.option("window_strides"), *low, *high, *dilation)


def _padding(convolution):
    padding = convolution.option("padding")
    if not isinstance(padding, str):
        return padding
    dilation = convolution.option("rhs_dilation") or (1, 1)
    window = [1 + (size - 1) * step for size, step in zip(convolution.rhs.shape, dilation)]
    strides = convolution.option("window_strides")
    return lax.padtype_to_pads(convolution.lhs.shape[1:3], window, strides, padding)


def _members(sizes, carried):
    """Which member of an operand each member of all axes reads, if it carries only some of them.

    Example:
        >>> _members([2, 3], [True, True]).tolist(), _members([2, 3], [False, True]).tolist()
        ([0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 2])
    """
    own = [size if carries else 1 for size, carries in zip(sizes, carried)]
    members = np.arange(np.prod(own, dtype=np.int64)).reshape(own)
    return np.broadcast_to(members, sizes).flatten()
