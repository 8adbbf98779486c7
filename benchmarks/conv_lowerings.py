"""Make the table from which ``hwa_jax.conv_general_dilated`` chooses its lowerings.

    python benchmarks/conv_lowerings.py [--output=hwa_jax/conv_lowerings.json]

Times the convolution and both gradients of N particles for every lowering, with the code that
users run, prints ratios, and writes the rows of the platform it ran on; other platforms' rows stay.
For each shape class the lowering with the smallest geometric mean wins. Run it on a quiet machine.
Where oneDNN is built (`make onednn`) it is measured too; the table does not choose it, users do.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import time
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from hwa_jax import conv, onednn

NUM_PARTICLES = (2, 4, 8)
LOWERINGS = {"window": ("unrolled", "grouped"), "pointwise": ("matmul", "unrolled", "grouped")}


class Shape(NamedTuple):
    """A square convolution with SAME padding; sizes in pixels and channels."""

    name: str
    side: int
    channels_in: int
    channels_out: int
    window: int
    stride: int
    batch: int = 128

    @property
    def shape_class(self):
        return "pointwise" if self.window == 1 else "window"

    def convolve(self, images, weights):
        options = {"padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        return conv.conv_general_dilated(images, weights, (self.stride,) * 2, **options)

    def operands(self, num_particles):
        """Images, weights and the cotangent of the outputs, each with a particle axis."""
        out_side = -(-self.side // self.stride)
        shapes = (
            (self.batch, self.side, self.side, self.channels_in),
            (self.window, self.window, self.channels_in, self.channels_out),
            (self.batch, out_side, out_side, self.channels_out),
        )
        keys = jax.random.split(jax.random.key(0), 3)
        return [jax.random.normal(k, (num_particles, *s)) for k, s in zip(keys, shapes)]


SHAPES = (
    Shape("CNN-S 1", 28, 1, 16, 3, 2),
    Shape("CNN-S 2", 14, 16, 32, 3, 2),
    Shape("CNN-S 3", 7, 32, 64, 3, 2),
    Shape("ResNet-20 stage 1", 32, 16, 16, 3, 1),
    Shape("ResNet-20 stage 2", 16, 32, 32, 3, 1),
    Shape("ResNet-20 stage 3", 8, 64, 64, 3, 1),
    Shape("shortcut 16 to 32", 32, 16, 32, 1, 2),
    Shape("shortcut 32 to 64", 16, 32, 64, 1, 2),
    Shape("pointwise 32", 16, 32, 32, 1, 1),
)


def compiled(lowering, shape, operands):
    """Forward and both gradients of all particles, compiled with one lowering for every shape."""

    @jax.vmap
    def member(images, weights, cotangent):
        outputs, pullback = jax.vjp(shape.convolve, images, weights)
        return outputs, pullback(cotangent)

    rows = {device.platform: {shape.shape_class: lowering} for device in jax.devices()}
    with (
        mock.patch.object(conv, "lowering_table", lambda: rows),
        mock.patch.object(onednn, "switched_on", lambda: lowering == "onednn"),
    ):
        return jax.jit(member).lower(*operands).compile()


def seconds(program, operands):
    start = time.perf_counter()
    jax.block_until_ready(program(*operands))
    return time.perf_counter() - start


def measure(shape, num_particles, repeats, limit):
    """Median seconds of each lowering, and of one particle alone; None where it was not run.

    Repeats go round the lowerings, so that a disturbance of the machine meets all of them.
    """
    operands = shape.operands(num_particles)
    first = [x[:1] for x in operands]
    best_alone = LOWERINGS[shape.shape_class][0]
    names = (*LOWERINGS[shape.shape_class], *(["onednn"] if onednn.is_built() else []))
    programs = {name: (compiled(name, shape, operands), operands) for name in names}
    programs["single"] = (compiled(best_alone, shape, first), first)
    for name, (program, arguments) in list(programs.items()):
        if (1 + repeats) * seconds(program, arguments) > limit:
            del programs[name]
    times = {name: [] for name in programs}
    for _ in range(repeats):
        for name, (program, arguments) in programs.items():
            times[name].append(seconds(program, arguments))
    return {
        name: statistics.median(times[name]) if name in times else None
        for name in (*names, "single")
    }


def compile_seconds(num_particles):
    """Seconds to compile the gradient of a network of three convolutions for N particles."""
    shapes = SHAPES[:3]
    images = shapes[0].operands(num_particles)[0]
    weights = [shape.operands(num_particles)[1] for shape in shapes]

    def loss(weights, images):
        for shape, kernel in zip(shapes, weights):
            images = jax.nn.relu(shape.convolve(images, kernel))
        return jnp.mean(images**2)

    start = time.perf_counter()
    jax.jit(jax.vmap(jax.grad(loss))).lower(weights, images).compile()
    return time.perf_counter() - start


def header():
    """Versions and hardware, as text for the table's reader."""
    model = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "cpu": f"{model}, {os.cpu_count()} cores",
        "load average at start": round(os.getloadavg()[0], 1),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def choose(cells):
    """Shape class -> lowering with the smallest geometric mean; a cell not run excludes it."""
    rows = {}
    for shape_class, lowerings in LOWERINGS.items():
        times = [c["seconds"] for c in cells if c["shape class"] == shape_class]

        def mean_log(lowering):
            return np.mean([np.log(t[lowering] or np.inf) for t in times])

        rows[shape_class] = min(lowerings, key=mean_log)
    return rows


def show(cell):
    times = cell["seconds"]
    chosen = LOWERINGS[cell["shape class"]]
    best = min((times[name] for name in chosen if times[name]), default=float("nan"))
    parts = [
        f"{name} {1e3 * t:9.1f} ms ({t / best:5.2f})" if t else f"{name} not run"
        for name, t in times.items()
        if name != "single"
    ]
    ratio = best / (cell["num_particles"] * times["single"]) if times["single"] else float("nan")
    parts.append(f"best / (N x single) {ratio:.2f}")
    print(f"{cell['shape']:18} N={cell['num_particles']}", *parts, sep="  ", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(conv.__file__).with_name("conv_lowerings.json")
    parser.add_argument("--output", type=pathlib.Path, default=default)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds per cell and lowering")
    arguments = parser.parse_args()
    about = header()
    print("  ".join(f"{name}: {value}" for name, value in about.items()))
    cells = []
    for shape in SHAPES:
        for num_particles in NUM_PARTICLES:
            times = measure(shape, num_particles, arguments.repeats, arguments.limit)
            cell = {
                "shape": shape.name,
                "shape class": shape.shape_class,
                "num_particles": num_particles,
                "seconds": times,
            }
            show(cell)
            cells.append(cell)
    compiling = {str(n): round(compile_seconds(n), 2) for n in (1, 8)}
    print("seconds to compile a gradient of three convolutions, by particles:", compiling)
    save(arguments.output, cells, {"header": about, "compile seconds": compiling})


def save(path, cells, measurement):
    """Replace this platform's rows in the table at ``path``; cells that were not run say so."""
    table = json.loads(path.read_text()) if path.exists() else {}
    rows = choose(cells)
    for cell in cells:
        cell["seconds"] = {n: round(t, 6) if t else "not run" for n, t in cell["seconds"].items()}
    name = jax.default_backend()
    table.setdefault("lowering", {})[name] = rows
    table.setdefault("measured", {})[name] = {**measurement, "cells": cells}
    path.write_text(json.dumps(table, indent=1) + "\n")
    print(f"{path}: {name} {rows}")


if __name__ == "__main__":
    main()
