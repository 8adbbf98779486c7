"""Writes the report of a comparison of pruning methods: report.md, its plots, and results.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hwa_jax.report.claims import effects_table
from hwa_jax.report.document import images, json_text, provenance
from hwa_jax.report.sparse_methods import METHODS, levels_by_method
from hwa_jax.report.sparsity_plots import accuracy_plots, average_plots, layer_plots
from hwa_jax.report.sparsity_tables import cost_table, gate_table, level_table, passes_table, summary_table, tuning_table
from hwa_jax.report.swamp_claims import MARGIN, effects
from hwa_jax.storage.atomic import write_text
from hwa_jax.training.environment import environment

_CLAIMS = f"""\
Each row is a paired difference over seeds in percentage points of test accuracy, positive where the claim holds: "shown" if its 95 %
interval lies above zero, "contradicted" if below, "not shown" if it contains zero. S1: SWAMP beats IMP, most at high sparsity. S2: it is about
as good as an ensemble of two IMP networks. S3: SWA stands in for more particles. S4: its masks are better. S6: at low sparsity the average is
below its particles, and the gap closes. S2 and S3 claim to be about as good: up to {MARGIN} points worse counts as that, our choice. The
rows "2×2" are the parts of SWAMP one by one, and "gate" is what the gate changed. Many rows are looked at: of twenty without any effect, one is
expected to be shown or contradicted by chance.
"""

_GATE = """\
A gated run goes on with its best particle wherever the mean loss of its particles on held-out training images is below that of the average.
"""

_READING = """\
All methods of a seed start from one ticket, except those with an early one, those with rates of their own, and the further members of
ensembles, and prune the same number of weights at each level. The
dense network is the level with 100 % left. The test split was used for these figures alone; the particle called best was chosen by
validation accuracy. Training accuracy is in results.json, on a sample. NLL is the mean negative log-likelihood in nats, ECE the expected
calibration error; lower is better for both. ± is the half width of the 95 % confidence interval over seeds (Student's t).
"""


def write_comparison(cells: Sequence[Mapping], directory: Path, *, title: str, meta: Mapping, tuning: Mapping) -> Path:
    """Writes report.md with tables and PNG plots, and results.json, into a directory.

    Every file is complete or absent, report.md comes last.

    Args:
        cells: one mapping per method and seed, with method (a key of `sparse_methods.METHODS`), seed, num_train, model, rates,
            environment, diverged (the reason, or None), and levels, none where it diverged: one mapping per level of sparsity, from the dense network on, with num_weights, sparsity,
            density_per_layer (layer -> fraction), num_particles, solution, gate ({average, particles, averaging_hurts} or None),
            train, validation and test ({accuracy, nll, ece}, accuracy as a fraction), the same of "average", "particles" (the mean over
            particles, or None) and "best_particle" (or None), barrier ({mean, max} in nats, or None), epochs and seconds (of all
            trainings that led to this network).
        directory: made if absent; files of the same names are replaced.
        title: first line of the report.
        meta: as in `hwa_jax.report.comparison.write_comparison`.
        tuning: {"grid": rows of method, rate, seed and validation accuracy, "chosen": learning_rate and swa_learning_rate}.

    Returns:
        The path of report.md.

    Raises:
        ValueError: there is no cell, or as `levels_by_method`.
        UserError: a file cannot be written.
    """
    if not any(cell["levels"] for cell in cells):
        raise ValueError("cells has no finished training: nothing to report")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    machine = environment()
    write_text(directory / "results.json", json_text({"meta": meta, "environment": machine, "tuning": tuning, "cells": cells}))
    parts = [f"# {title}", *([meta["description"]] if "description" in meta else [])]
    parts += ["## Summary", summary_table(cells), *images(accuracy_plots(cells, directory))]
    if found := effects(cells):
        parts += ["## The claims of the SWAMP paper", _CLAIMS.strip(), effects_table(found)]
    parts += ["## Where averaging helps", *images(average_plots(cells, directory)), _GATE.strip(), gate_table(cells)]
    parts += ["## What was compared", _methods(cells), _READING.strip()]
    parts += ["## Test accuracy, %", level_table(cells, "accuracy", scale=100)]
    parts += ["## Test NLL", level_table(cells, "nll", digits=4), "## Test ECE", level_table(cells, "ece", digits=4)]
    if diverged := [f"- {METHODS[cell['method']][0]}, seed {cell['seed']}: {cell['diverged']}" for cell in cells if cell["diverged"]]:
        parts += ["## Trainings that diverged, and are in no figure", "\n".join(diverged)]
    parts += ["## What it cost", cost_table(cells), "Passes over the data that led to a network, all particles and trainings:", passes_table(cells)]
    parts += ["## Where the weights are left", *images(layer_plots(cells, directory))]
    if tuning["grid"]:
        parts += ["## The tuning grid", tuning_table(tuning)]
    parts += ["## How it was obtained", *provenance(cells, machine, meta)]
    path = directory / "report.md"
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _methods(cells):
    """A line per method that occurs."""
    lines = []
    for method, by_seed in levels_by_method(cells).items():
        name, description = METHODS[method]
        numbers = sorted({level["num_particles"] for levels in by_seed.values() for level in levels})
        shown = f" Here N = {' and '.join(map(str, numbers))}." if numbers != [1] else ""
        lines.append(f"- **{name}**: {description}{shown}")
    return "\n".join(lines)
