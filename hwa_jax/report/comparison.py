"""Writes the report of a method comparison: report.md, its plots, and results.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hwa_jax.report import averaging_options
from hwa_jax.report.aggregation import Row, Section, aggregate, ordered
from hwa_jax.report.averaging_options import of_main_average
from hwa_jax.report.comparison_plots import curve_plots, difference_plot
from hwa_jax.report.comparison_tables import (
    heading,
    section_sentences,
    section_table,
    summary_table,
    tuning_table,
)
from hwa_jax.report.claims import effects_table
from hwa_jax.report.document import images, json_text, provenance
from hwa_jax.report.hwa_claims import effects
from hwa_jax.report.methods import METHODS, SETTINGS, method_named
from hwa_jax.storage.atomic import write_text
from hwa_jax.training.environment import environment

_HOW_TO_READ = """\
**Equal steps**: every replica takes as many optimizer steps as plain training. A method with K
replicas then costs K times the compute, and SAM twice; the column "passes over data" says how much.

**Equal compute**: plain training, and every method that costs no more than it, is given as many
passes over the data as the costlier methods spend in all replicas together (SAM counts twice).

Accuracies are means over seeds ± the half width of the 95 % confidence interval (Student's t).
The difference to plain is paired: from each seed's accuracy that of plain training with the same
seed, on the same basis, is subtracted; n is the number of such pairs. The verdict follows from
the interval of the difference alone: "better" if it lies above zero, "worse" if below, "no
difference shown" if it contains zero, "not judged" with fewer than two pairs. Of twenty methods
that change nothing, one is expected to look better or worse by chance.

NLL is the mean negative log-likelihood in nats, ECE the expected calibration error; lower is
better for both. Validation accuracy at 1/3 and 2/3 is read off the curve at that part of the
training, linearly between two evaluations. Train − test is the accuracy on the training data
minus that on the test data. Passes over data, communicated bytes and synchronizations between
replicas are those of the whole training. The training time leaves out evaluation and
compilation. The curves show the validation split, held out of the training data; a curve may
start below its plot. The test split was used for the final accuracies, NLL and ECE alone.
"""

_CLAIMS = """\
Each row is a paired difference over seeds, positive where the claim holds: "shown" if its 95 % interval lies
above zero, "contradicted" if below, "not shown" if it contains zero. H1: HWA beats plain training and both of its
halves. H2: it converges faster. H3: it does so without a learning-rate schedule. H4: rare synchronization keeps
the gain. H8: it is steadier and overfits less. H9: with AdamW too. H10: with fewer training images too. Points are
percentage points of test accuracy unless the row says otherwise.
"""

_TUNING = """
Validation accuracy in percent of every point, the mean over tuning seeds, which are not reported; the best of each
column is in bold and was chosen. Plain and offline are the last weights and the window average of the same trainings.
"""


def write_comparison(
    cells: Sequence[Mapping], directory: Path, *, title: str, meta: Mapping, tuning: Sequence[Mapping] = ()
) -> Path:
    """Writes report.md with tables and PNG plots, and results.json, into a directory.

    Cells that average online otherwise than the first HWA cell have a table and a plot of their own. Every file is complete or absent, report.md comes last. Missing methods, bases, seeds and
    curves are said to be missing.

    Args:
        cells: one mapping per training, with the fields method (plain, ema, online,
            offline_window, offline_uniform, lookahead, sam, hwa, or another name), optimizer,
            schedule, comparison ("equal_steps", "equal_compute", or "both"), seed, num_train,
            num_replicas, sync_period (steps), window_size (pushes), averaging (what is special about the
            online average: "bfloat16", "outer sgd 0.7 Nesterov 0.9", or None), replica_batch_sizes (images in
            each replica's batch, "50:10", or None where all are full), epochs_per_replica,
            compute_epochs (passes over the data summed over replicas; SAM's count double),
            bytes_communicated, synchronizations, seconds (training time alone), curve (list of
            {step, epoch, accuracy, nll} on the validation split, ascending), and train,
            validation, test ({accuracy, nll, ece}, accuracy as a fraction).
        directory: made if absent; files of the same names are replaced.
        title: first line of the report.
        meta: what else a reader needs, ready for JSON. "description" becomes the opening
            paragraph and "command" a code block; the rest is listed.
        tuning: the points of the tuning grid: optimizer, schedule, learning_rate, weight_decay, seed,
            and the validation accuracy of "plain", "offline" or "hwa".

    Returns:
        The path of report.md.

    Raises:
        ValueError: there is no cell, or as ``aggregate``.
        UserError: a file cannot be written.
    """
    if not cells:
        raise ValueError("cells is empty: nothing to report")
    main = of_main_average(cells)
    sections = aggregate(main)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    machine = environment()
    summary = [_summary(section) for section in sections]
    results = {"meta": meta, "environment": machine, "cells": cells, "summary": summary}
    write_text(directory / "results.json", json_text(results))
    parts = [f"# {title}", *([meta["description"]] if "description" in meta else [])]
    parts += ["## Summary", summary_table(main)]
    parts += images(difference_plot(sections, directory))
    if ways := averaging_options.section(cells, directory):
        parts += ["## Ways to average online", *ways]
    if found := effects(cells):
        parts += ["## The claims of the HWA paper", _CLAIMS.strip(), effects_table(found)]
    parts += ["## What was compared", _methods(sections), _HOW_TO_READ.strip()]
    for section in sections:
        parts += _section_parts(section, sections, directory)
    if tuning:
        parts += ["## The tuning grid", _TUNING.strip(), tuning_table(tuning)]
    parts += ["## How it was obtained", *provenance(cells, machine, meta)]
    path = directory / "report.md"
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _section_parts(section, sections, directory):
    return [
        f"## {heading(section, sections)}",
        section_table(section),
        *section_sentences(section),
        *images(curve_plots(sections, section, directory)),
    ]


def _methods(sections):
    """A line per method that occurs, with its settings."""
    rows = [row for section in sections for row in section.rows]
    occurring = {row.method for row in rows}
    lines = []
    for key in [*METHODS, *sorted(occurring - METHODS.keys())]:
        if key in occurring:
            method = method_named(key)
            cells = [c for row in rows if row.method == key for c in row.cells.values()]
            line = f"- **{method.name}**: {method.description}"
            lines.append(" ".join([line, *_settings(method, cells)]))
    return "\n".join(lines)


def _settings(method, cells):
    values = {
        SETTINGS[name]: sorted({cell[name] for cell in cells if cell[name] is not None}, key=lambda value: ordered([value]))
        for name in method.settings
    }
    shown = ", ".join(f"{symbol} = {' or '.join(map(str, v))}" for symbol, v in values.items() if v)
    return [f"Here {shown}."] if shown else []


def _summary(section: Section):
    return {
        "num_train": section.num_train,
        "optimizer": section.optimizer,
        "schedule": section.schedule,
        "rows": [_row_summary(row) for row in section.rows],
    }


def _row_summary(row: Row):
    intervals = {**row.measures, "difference_to_plain": row.difference}
    return {
        "method": row.method,
        "comparison": row.comparison,
        "label": row.label,
        "seeds": sorted(row.cells),
        "verdict": row.verdict,
        **intervals,
    }
