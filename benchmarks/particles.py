"""Row "particles": N particles in one program against N single runs, naive vmap, and PyTorch."""

from collections.abc import Iterator
from typing import Any

import jax

import timing
from jax_step import MODELS, Program

TITLE = "Training step of N particles: time of ours over the other's"
NOTE = (
    "One step is forward, gradients and SGD with momentum on synthetic images, a batch for each particle ("
    + ", ".join(f"{name} {batch} images of {'x'.join(map(str, shape))}" for name, (shape, batch) in MODELS.items())
    + "). \"N × single\": our program of one network, N times; \"N × lax\": the same with XLA's own convolution; \"naive vmap\": "
    "XLA's own convolution under vmap. PyTorch: N networks one after another, eager (channels_last, fused SGD) and with "
    "torch.compile, and all together by torch.func.vmap; \"best PyTorch\" is against the fastest of them."
)
LIMIT = 40.0  # seconds of a comparison, and of one call in it
TORCH = ("torch eager", "torch.compile", "torch.func.vmap")


def cells(options: Any) -> list[dict[str, Any]]:
    """One per network and N."""
    return [
        {"row": "particles", "model": model, "num_particles": n}
        for n in sorted(options.particles, key=lambda n: n != 4) for model in options.models
    ]


def measure(cell: dict[str, Any], repeats: int) -> Iterator[dict[str, Any]]:
    """Yields what is known, comparison by comparison."""
    model, num_particles = cell["model"], cell["num_particles"]
    ours = Program(model, num_particles)
    yield {"figures": {
        "compile, s": ours.compile_seconds, "step memory by the compiler, MB": ours.step_bytes / 1e6,
    }}
    if jax.default_backend() == "cpu":
        # The first step takes the memory; it stays with the process.
        peak = timing.peak_extra_bytes(lambda: ours(1))
        yield {"figures": {"resident memory of the first step, MB": peak and peak / 1e6}}
    ratios = {}
    for name, (build, weight) in _others(model, num_particles).items():
        try:
            ratios[name] = timing.compare(ours, build(), weight=weight, repeats=repeats, limit=LIMIT)
        except Exception as error:  # one side that does not work leaves the others
            yield {"not_run": {name: timing.reason(error)}}
            continue
        measured = {name: ratios[name]}
        if name in TORCH:
            measured["best PyTorch"] = max((ratios[key] for key in TORCH if key in ratios), key=lambda comparison: comparison["ratio"])
        yield {"ratios": measured, "figures": {"step of ours, ms": 1e3 * ratios[name]["ours_seconds"]}}


def _others(model, num_particles):
    """Name -> (builder of the side, how many of its calls do the work of one of ours)."""
    others = {"N × single": (lambda: Program(model), num_particles)}
    others |= {name: (lambda name=name: _torch_side(name, model, num_particles), 1) for name in TORCH}
    others["N × lax"] = (lambda: Program(model, convolution="lax"), num_particles)
    others["naive vmap"] = (lambda: Program(model, num_particles, "lax"), 1)
    return others


def _torch_side(name, model, num_particles):
    import torch_step

    return torch_step.SIDES[name](model, num_particles)
