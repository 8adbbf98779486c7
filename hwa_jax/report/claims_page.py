"""The page of results/: what became of every claim of the two papers, read from the results that are there."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hwa_jax.algorithms.hwa_cells import EARLIER
from hwa_jax.errors import UserError
from hwa_jax.report import hwa_claims, landscape_claims, swamp_claims
from hwa_jax.report.claims import Effect
from hwa_jax.report.statistics import paired_difference
from hwa_jax.report.tables import NOT_AVAILABLE, format_interval, markdown_table
from hwa_jax.storage.atomic import write_text


class Claim(NamedTuple):
    """One claim of a paper.

    Attributes:
        statement: what is claimed.
        example: the beginning of the text of the effect that stands for it, and what its setting must contain.
        plots: patterns of file names, the first one that is there is linked.
    """

    statement: str
    example: tuple[str, str]
    plots: tuple[str, ...]


_CURVES = ("curves_sgd_constant*_10_000_*equal_steps.png", "curves_sgd_constant*equal_steps.png")
CLAIMS = {
    "H1": Claim("HWA beats plain training, online and offline averaging alone", ("HWA - plain, equal steps", "constant"), ("differences.png",)),
    "H2": Claim("it converges faster", ("validation accuracy at 2/3", "SGD, constant"), _CURVES),
    "H3": Claim("it does so without a learning-rate schedule", ("HWA constant - plain cosine, equal steps", "SGD"), _CURVES),
    "H4": Claim("rare synchronization keeps the gain", ("HWA at H=500", ""), ("differences.png",)),
    "H5": Claim("a badly chosen start, window or rate makes offline averaging hurt", ("early", "fashion"), ("gap_fashion*.png", "gap_*.png")),
    "H6": Claim("one setting of K, H and I is good over a wide range", ("K=2", "constant"), ("*.png",)),
    "H7": Claim("averaged weights sit in flatter regions", ("Hessian trace of HWA below that of plain", ""), ("hwa_curvature.png",)),
    "H8": Claim("training is steadier and overfits less", ("standard deviation", "SGD, constant"), _CURVES),
    "H9": Claim("existing optimizers stay: the same with AdamW", ("HWA - plain, equal steps", "constant"), ("differences.png",)),
    "H10": Claim("it holds with few training images", ("HWA - plain, equal steps", ""), ("curves_sgd_constant_1_000_*equal_steps.png",)),
    "S1": Claim("SWAMP beats IMP at the same sparsity, most at high sparsity", ("SWAMP - IMP", "mean over all"), ("accuracy.png",)),
    "S2": Claim("it is about as good as an ensemble of two IMP networks", ("SWAMP - ensemble", "mean over all"), ("accuracy.png",)),
    "S3": Claim("SWA inside a particle stands in for more particles", ("SWAMP with fewer", "mean over all"), ("accuracy_parts.png",)),
    "S4": Claim("its masks are better", ("SWAMP's masks", "mean over all"), ("accuracy_masks.png",)),
    "S5": Claim(
        "particles are linearly connected, their hull has low loss, the average is flatter", ("share of the hull", "13 %"), ("swamp_curvature.png",)
    ),
    "S6": Claim("in nearly dense networks averaging does not help yet; the gap closes", ("average and mean particle of SWAMP:", "growth"), ("average_minus*.png",)),
    "S7": Claim("the light network is cheaper to run", ("", ""), ()),
}


class Source(NamedTuple):
    """A directory of results/ with a results.json.

    Attributes:
        setup: data and network.
        effects: cells -> effects.
    """

    setup: str
    effects: Callable[[Sequence[Mapping]], Sequence[Effect]]


class Row(NamedTuple):
    """What one directory says of a claim.

    Attributes:
        claim: "H1" to "S7".
        setup: data, network and, of the example, the setting.
        example: the effect that stands for it, as text.
        n: seeds of the example.
        count: how many effects are shown, of how many, and how many are contradicted.
        verdict: of all effects together.
        plot: link relative to results/.
        command: that made the results.
    """

    claim: str
    setup: str
    example: str
    n: str
    count: str
    verdict: str
    plot: str
    command: str


_NOT_RUN = Row("", *4 * [NOT_AVAILABLE], "not run", NOT_AVAILABLE, "")

_INTRODUCTION = """\
# Results: the claims of the two papers

H1 to H10 are claims of the HWA paper (arXiv 2304.11519), S1 to S7 of the SWAMP paper (arXiv 2305.14852); both papers' networks are far larger than
those that were trained here on two CPU cores. Made by `python experiments/summarize_results.py` from the figures in the directories beside this page; the
reports there have all effects, settings and plots.

An effect is a difference, paired by seed, that is positive where the claim holds, ± half width of its 95 % confidence interval over n seeds. It
is shown if the interval lies above zero, contradicted if below. "Effect" is one example; "shown" counts all effects of the claim in that
setting, and the verdict is by rule: reproduced if all of them are shown, partly if some are, contradicted if none is and one or more are
contradicted, else not reproduced. Where nothing is different, one effect of forty is shown by chance. At three to five seeds "not reproduced" often
means that the interval is wide. "Not run" fills in when the results are there and the command is run again.
"""


def write_page(directory: str | Path) -> Path:
    """Writes README.md into results/, complete or not at all; returns its path.

    Raises:
        UserError: no such directory, a damaged results.json, or a file that cannot be written.
    """
    path = Path(directory) / "README.md"
    write_text(path, page(Path(directory)))
    return path


def page(directory: Path) -> str:
    """The page as Markdown; the same results give the same text."""
    if not directory.is_dir():
        raise UserError(f"--results={directory}: is no directory: give results/ of a checkout")
    by_claim, lines = {claim: [] for claim in CLAIMS}, []
    for row in rows(directory):
        by_claim[row.claim].append(row)
    for claim, found in by_claim.items():
        for number, row in enumerate(found or [_NOT_RUN]):
            statement = CLAIMS[claim].statement if number == 0 else ""
            lines.append([claim, statement, row.setup, row.example, row.n, row.count, row.verdict, row.plot])
    header = ["Claim", "", "Setup", "Effect", "n", "Shown", "Verdict", "Plot"]
    commands = dict.fromkeys(f"- `{row.command}`" for found in by_claim.values() for row in found if row.command)
    parts = [_INTRODUCTION.rstrip(), markdown_table(header, lines, "llllrlll")]
    parts += ["Commands that made them:", "\n".join(commands)] if commands else []
    return "\n\n".join(parts) + "\n"


def rows(directory: Path) -> Iterator[Row]:
    """A row for every claim and every directory that says something of it."""
    for name, source in SOURCES.items():
        for path in sorted(directory.glob(f"{name}/results.json")):
            results = _read(path)
            effects = source.effects(results["cells"])
            for claim in dict.fromkeys(effect.claim for effect in effects if effect.claim in CLAIMS):
                mine = [effect for effect in effects if effect.claim == claim]
                yield _row(claim, source.setup, mine, path.parent, results["meta"].get("command", ""))
    for path in sorted(directory.glob("sparse_export/*.report.json")):
        yield _export_row(_read(path), path)


def verdict(effects: Sequence[Effect]) -> str:
    """The verdict on a claim from the verdicts on its effects.

    Example:
        >>> from hwa_jax.report.statistics import Interval
        >>> effect = lambda mean: Effect("H1", "", "", Interval(mean, 1.0, 5), "points")
        >>> verdict([effect(2.0), effect(0.5)]), verdict([effect(-2.0), effect(0.5)])
        ('partly', 'contradicted')
    """
    found = [effect.verdict for effect in effects if effect.verdict != "not judged"]
    if not found:
        return "not judged"
    shown = found.count("shown")
    if shown == len(found):
        return "reproduced"
    return "partly" if shown else "contradicted" if "contradicted" in found else "not reproduced"


def _row(claim, setup, effects, directory, command):
    beginning, setting = CLAIMS[claim].example
    example = next((e for e in effects if e.text.startswith(beginning) and setting in e.setting), effects[0])
    judged = [effect.verdict for effect in effects]
    count = f"{judged.count('shown')} of {len(judged)}" + (f", {against} contradicted" if (against := judged.count("contradicted")) else "")
    text = f"{example.text}: {format_interval(example.effect, signed=True)} {example.unit}"
    return Row(
        claim, f"{setup}; {example.setting}", text, str(example.effect.n), count, verdict(effects),
        _link(directory, CLAIMS[claim].plots), command,
    )


def _link(directory, patterns):
    for pattern in patterns:
        for path in sorted(directory.glob(pattern)):
            return f"[plot]({directory.name}/{path.name}), [report]({directory.name}/report.md)"
    return f"[report]({directory.name}/report.md)"


def _export_row(found, path):
    """S7: no seeds, but bytes and operations that can be counted, and a time per batch size that was measured."""
    size, flops = found["bytes"], found["flops"]
    ratios = {"file": size["sparse_file"] / size["dense_file"], "FLOPs": flops["sparse"] / flops["dense"]}
    ratios |= {f"time at batch {row['batch_size']}": row["seconds"]["predict"] / row["seconds"]["dense"] for row in found["latency"]}
    lower = sum(ratio < 1 for ratio in ratios.values())
    text = "sparse / dense: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    facts = found["facts"]
    stem = path.name.removesuffix(".report.json")
    beside = path.with_name(f"{stem}.report.md")
    link = f"[report](sparse_export/{beside.name})" if beside.exists() else f"[figures](sparse_export/{path.name})"
    return Row(
        "S7", f"{facts['model']['name']} on {facts['config']['data']['name']}; {1 - facts['sparsity']:.3g} of the weights left", text, "1",
        f"{lower} of {len(ratios)}", "reproduced" if lower == len(ratios) else "partly" if lower else "contradicted", link, "",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}): restore the file") from error


def _comparison(cells: Sequence[Mapping]) -> list[Effect]:
    """H1 to H4 and H8 to H10; cells of an earlier version had fewer settings."""
    return hwa_claims.effects([{**EARLIER, **cell} for cell in cells])


def _averaging_hurts(cells: Sequence[Mapping]) -> list[Effect]:
    """H5: where start, window or rate are chosen badly, how much the average is worse than the latest weights, for every subject."""
    found = {}
    for cell in cells:
        if cell["case"] in ("early", "long", "decay"):
            found.setdefault((cell["case"], cell["subject"]), {})[cell["seed"]] = {
                name: 100 * accuracy for name, accuracy in cell["accuracy"].items()
            }
    return [
        Effect("H5", f"{case}: latest - average", subject, paired_difference(
            {seed: one["latest"] for seed, one in seeds.items()}, {seed: one["average"] for seed, one in seeds.items()}
        ), "points")
        for (case, subject), seeds in found.items()
    ]


def _sweep(cells: Sequence[Mapping]) -> list[Effect]:
    """H6: at every K, H and schedule, what the average over the I of the configuration gains over the last outer weights."""
    found = {}
    for cell in cells:
        if cell["windows"]:
            found.setdefault((cell["num_replicas"], cell["sync_period"], cell["schedule"]), {})[cell["seed"]] = cell["test"]
    return [
        Effect("H6", f"K={num_replicas}, H={period}: average over the default I - outer weights", schedule, paired_difference(
            {seed: 100 * one["base"] for seed, one in seeds.items()}, {seed: 100 * one["outer"] for seed, one in seeds.items()}
        ), "points")
        for (num_replicas, period, schedule), seeds in found.items()
    ]


# Directory -> what it is; those that are not there are passed over.
SOURCES = {
    "hwa_fashion_mnist": Source("Fashion-MNIST, CNN-S, 10,000 images", _comparison),
    "hwa_digits": Source("digits with noisy labels, CNN-S", _comparison),
    "hwa_mnist1d": Source("MNIST-1D, LeNet-300-100", _comparison),
    "averaging_hurts": Source("digits and Fashion-MNIST", _averaging_hurts),
    "sweep_digits": Source("digits", _sweep),
    "sweep_fashion_mnist": Source("Fashion-MNIST, CNN-S, 3,000 images", _sweep),
    "landscape_fashion_mnist": Source("Fashion-MNIST, 2,000 images", landscape_claims.effects),
    "swamp_fashion_mnist": Source("Fashion-MNIST, LeNet-300-100, 20,000 images", swamp_claims.effects),
    "swamp_fashion_mnist_cnn": Source("Fashion-MNIST, CNN-M", swamp_claims.effects),
}
