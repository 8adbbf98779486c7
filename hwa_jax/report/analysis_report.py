"""Writes the report of the instruments on one training: report.md, its plots, and results.json."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hwa_jax.report import analysis_plots
from hwa_jax.report.document import images, json_ready, provenance
from hwa_jax.report.landscape_plots import landscape
from hwa_jax.report.tables import format_number, markdown_table
from hwa_jax.storage.atomic import write_text
from hwa_jax.training.environment import environment

_CONNECTIVITY = """\
Loss and error along straight segments between weight vectors. The barrier is the highest value on the segment minus the
mean of its two ends (Frankle et al. 2020): close to zero, the two lie in one basin and can be averaged; it is never
negative, and half the difference of the ends where nothing between them is worse. "Midpoint" is the average of the two,
and its gain what it is better by than the mean of the two."""

_HULL = """\
Points drawn at random from the convex hull of the corners (Dirichlet weights, concentration {concentration:g}; 1 is
uniform). Where the loss inside is below that of the corners, averages of any proportions are good, not the plain one alone."""

_PLANE = """\
The plane through three weight vectors, those in the legend without a distance, with an orthonormal basis: distances on
paper are distances between weights. Everything else is projected on it, and drawn where its nearest point of the plane
is: a weight vector far off the plane may have another loss than the colour under its marker."""

_RANDOM = """\
Along two random directions whose filters have the norms of the network's own (Li et al. 2018); one unit along an axis
changes the weights by as much as they are long. Two directions of very many: what is flat here need not be flat in all."""

_CURVATURE = """\
Trace of the Hessian (Hutchinson, ± standard error) and its largest eigenvalues (Lanczos; an eigenvalue lies within the
residual of the value), of the loss as a function of the remaining weights, BatchNorm statistics held fixed. Both change
when a layer is rescaled although the network computes the same. Adaptive sharpness does not: it is the rise of the
loss, in nats, when every weight is changed at random in proportion to its size, by 5 % (Kwon et al. 2021;
Andriushchenko et al. 2023). All rows saw the same
random vectors: differences between rows are more certain than the errors say."""

INSTRUMENTS = ("connectivity", "hull", "landscape", "curvature")


def write_report(studies: Mapping[str, Mapping], directory: Path, *, title: str, splits: Mapping[str, str], meta: Mapping) -> Path:
    """Writes report.md, a PNG per plot, and results.json; every file complete or absent, report.md last.

    Args:
        studies: instrument -> what its function in `hwa_jax.analysis.studies` returned; some of `INSTRUMENTS`.
        directory: made if absent; files of the same names are replaced.
        title: what was looked at.
        splits: instrument -> the split it was evaluated on, with the number of examples.
        meta: how it was obtained: "seed" and "num_train" of the training, its "environment", the "command", and
            whatever else a reader needs.

    Returns:
        The path of report.md.

    Raises:
        UserError: a file cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    machine = environment()
    results = {"title": title, "splits": splits, "meta": meta, "environment": machine, **studies}
    write_text(directory / "results.json", json.dumps(json_ready(results), allow_nan=False) + "\n")
    sections = {"connectivity": _connectivity, "hull": _hull, "landscape": _landscape, "curvature": _curvature}
    parts = [f"# {title}"]
    for name in INSTRUMENTS:
        if name in studies:
            parts += sections[name](studies[name], directory, splits[name])
    training = {key: meta[key] for key in ("seed", "num_train", "environment")}
    others = {key: value for key, value in meta.items() if key not in training}
    parts += ["## How it was obtained", *provenance([training], machine, others)]
    path = directory / "report.md"
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _connectivity(study, directory, split):
    parts = [f"## Connectivity, on {split}", _CONNECTIVITY]
    if study["compared"]:
        plot = analysis_plots.segments(study["compared"], directory / "segments.png", f"Between the weights, on {split}")
        parts += [*images([plot]), _pair_table(study["compared"])]
    if study["successive"]:
        plot = analysis_plots.chain(study["successive"], directory / "chain.png", f"From one solution to the next, on {split}")
        parts += ["### Successive solutions", *images([plot]), _pair_table(study["successive"])]
    return parts


def _pair_table(pairs):
    rows = []
    for pair in pairs:
        middle = int(np.argmin(np.abs(np.array(pair["position"]) - 0.5)))
        gains = [np.mean([pair[q][0], pair[q][-1]]) - pair[q][middle] for q in ("loss", "error")]
        rows.append([
            pair["from"], pair["to"], format_number(pair["loss_barrier"], 4), format_number(100 * pair["error_barrier"], 2),
            format_number(gains[0], 4, signed=True), format_number(100 * gains[1], 2, signed=True),
        ])
    header = ["from", "to", "loss barrier, nats", "error barrier, points", "midpoint's gain, nats", "points"]
    return markdown_table(header, rows, "llrrrr")


def _hull(study, directory, split):
    plot = analysis_plots.hull(study, directory / "hull.png", f"Inside the convex hull of {len(study['corners'])} weights, on {split}")
    corners = list(study["corners"].values())
    rows = []
    for quantity, factor, digits, unit in (("loss", 1, 4, "loss, nats"), ("error", 100, 2, "error, %")):
        inside = factor * np.array(study["inside"][quantity])
        ends = factor * np.array([corner[quantity] for corner in corners])
        numbers = [ends.min(), ends.mean(), factor * study["centre"][quantity], *np.quantile(inside, [0.0, 0.5, 1.0])]
        # An error that is equal must not look lower by its last bit.
        below = [np.mean(inside < limit - 1e-9) for limit in (ends.mean(), ends.min())]
        rows.append([unit, *(format_number(x, digits) for x in numbers), *(f"{x:.0%}" for x in below)])
    header = ["", "best corner", "mean corner", "centre", "inside: lowest", "median", "highest", "below mean corner", "below best corner"]
    return [f"## Convex hull, on {split}", _HULL.format(**study), *images([plot]), markdown_table(header, rows, "lrrrrrrrr")]


def _landscape(study, directory, split):
    plane = landscape(
        study["plane"], directory / "plane.png", title=f"The plane through three weight vectors, on {split}",
        xlabel="distance along the first axis", ylabel="distance along the second axis", split=split.split(",")[0],
    )
    random = landscape(
        study["random"], directory / "random.png", title=f"Along two random directions, on {split}",
        xlabel="first direction, filter norms", ylabel="second direction, filter norms", split=split.split(",")[0],
    )
    rows = [[name, *(format_number(value, 3) for value in where)] for name, where in study["plane"]["positions"].items()]
    return [
        f"## Landscape, on {split}", _PLANE, *images([plane]), markdown_table(["weights", "x", "y", "distance from the plane"], rows, "lrrr"),
        "### Random directions", _RANDOM, *images([random]),
    ]


def _curvature(study, directory, split):
    plot = analysis_plots.curvature(study, directory / "curvature.png", f"Curvature of the loss, on {split}")
    rows = [
        [name, format_number(row["loss"], 4), f"{row['trace']:.4g} ± {row['trace_error']:.2g}",
         ", ".join(f"{value:.4g}" for value in row["eigenvalues"]), f"{max(row['residuals']):.2g}",
         f"{row['sharpness']:.4g} ± {row['sharpness_error']:.2g}"]
        for name, row in study.items()
    ]
    header = ["weights", "loss, nats", "trace", "largest eigenvalues", "largest residual", "adaptive sharpness, nats"]
    return [f"## Curvature, on {split}", _CURVATURE, *images([plot]), markdown_table(header, rows, "lrrrrr")]
