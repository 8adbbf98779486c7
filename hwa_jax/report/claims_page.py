"""The page of results/: what became of every claim of the two papers, read from the results that are there."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hwa_jax.algorithms.hwa_cells import EARLIER
from hwa_jax.errors import UserError
from hwa_jax.report import averaging_hurts, hwa_claims, landscape_claims, sparse_report, swamp_claims, sweep
from hwa_jax.report.claims import Effect
from hwa_jax.report.tables import NOT_AVAILABLE, format_interval, markdown_table
from hwa_jax.storage.atomic import write_text


class Claim(NamedTuple):
    """One claim of a paper.

    Attributes:
        statement: what is claimed.
        example: the beginning of the text of the effect that stands for it, and what its setting must contain.
        plots: patterns of file names, the first one that is there is linked.
        beside: part of the texts of effects that are spoken of beside it: how many of them are shown, or what they are where they are not judged.
    """

    statement: str
    example: tuple[str, str]
    plots: tuple[str, ...]
    beside: str = ""


_CURVES = ("curves_sgd_constant*_10_000_*equal_steps.png", "curves_sgd_constant*equal_steps.png")
CLAIMS = {
    "H1": Claim("HWA beats plain training, online and offline averaging alone", ("HWA - plain, equal steps", "constant"), ("differences.png",)),
    "H2": Claim("it converges faster", ("validation accuracy at 2/3", "SGD, constant"), _CURVES),
    "H3": Claim("it does so without a learning-rate schedule", ("HWA constant - plain cosine, equal steps", "SGD"), _CURVES),
    "H4": Claim("rare synchronization keeps the gain", ("HWA at H=500", ""), ("differences.png",)),
    "H5": Claim(
        "a badly chosen start, window or rate makes offline averaging hurt, HWA less", ("early, offline averaging alone: loss cost", "fashion"), ("exposure.png",),
        "alone - HWA",
    ),
    "H6": Claim("one setting of K, H and I is good over a wide range", ("settings as good", "constant"), ("*.png",)),
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

An effect is a difference, in most rows paired by seed, that is positive where the claim holds, ± half width of its 95 % confidence interval over n seeds. It
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
    beside = [f"- [{text}]({name}/report.md)" for name, text in BESIDE.items() if (directory / name / "report.md").is_file()]
    parts += ["Results that no claim reads from:", "\n".join(beside)] if beside else []
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
    text = "; ".join([f"{example.text}: {format_interval(example.effect, signed=True)} {example.unit}", *_beside(effects, CLAIMS[claim].beside)])
    return Row(
        claim, f"{setup}; {example.setting}", text, str(example.effect.n), _count(effects), verdict(effects),
        _link(directory, CLAIMS[claim].plots), command,
    )


def _count(effects):
    judged = [effect.verdict for effect in effects if effect.verdict != "not judged"]
    return f"{judged.count('shown')} of {len(judged)}" + (f", {against} contradicted" if (against := judged.count("contradicted")) else "")


def _beside(effects, part):
    mine = [effect for effect in effects if part and part in effect.text]
    if any(effect.verdict != "not judged" for effect in mine):
        yield f"{part} shown: {_count(mine)}"
    else:
        yield from (f"{one.text}, {one.setting}: {format_interval(one.effect)} {one.unit}" for one in mine)


def _link(directory, patterns):
    for pattern in patterns:
        for path in sorted(directory.glob(pattern)):
            return f"[plot]({directory.name}/{path.name}), [report]({directory.name}/report.md)"
    return f"[report]({directory.name}/report.md)"


def _export_row(found, path):
    """S7: no seeds, but bytes and operations that can be counted, and a time per batch size that was measured."""
    size, flops = found["bytes"], found["flops"]
    ratios = {"file": size["sparse_file"] / size["dense_file"], "FLOPs": flops["sparse"] / flops["dense"]}
    words = ["faster" if ratio < 1 else "slower" for ratio in ratios.values()] + [sparse_report.verdict(row["seconds"]) for row in found["latency"]]
    lower, higher = words.count("faster"), words.count("slower")
    ratios |= {f"time at batch {row['batch_size']}": row["seconds"]["predict"] / row["seconds"]["dense"] for row in found["latency"]}
    text = "sparse / dense: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    facts = found["facts"]
    stem = path.name.removesuffix(".report.json")
    beside = path.with_name(f"{stem}.report.md")
    link = f"[report](sparse_export/{beside.name})" if beside.exists() else f"[figures](sparse_export/{path.name})"
    return Row(
        "S7", f"{facts['model']['name']} on {facts['config']['data']['name']}; {1 - facts['sparsity']:.3g} of the weights left", text, "1",
        f"{lower} of {len(ratios)}" + (f", {higher} contradicted" if higher else ""), "reproduced" if lower == len(ratios) else "partly" if lower else "contradicted", link, "",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}): restore the file") from error


def _comparison(cells: Sequence[Mapping]) -> list[Effect]:
    """H1 to H4 and H8 to H10; cells of an earlier version had fewer settings."""
    return hwa_claims.effects([{**EARLIER, **cell} for cell in cells])


# Directory -> what it is; those that are not there are passed over.
SOURCES = {
    "hwa_fashion_mnist": Source("Fashion-MNIST, CNN-S, 10,000 images", _comparison),
    "hwa_digits": Source("digits with noisy labels, CNN-S", _comparison),
    "hwa_fashion_mnist_resnet8": Source("Fashion-MNIST, ResNet-8, 2,000 images", _comparison),
    "hwa_mnist1d": Source("MNIST-1D, LeNet-300-100", _comparison),
    "hwa_options": Source("Fashion-MNIST, CNN-S, 2,000 images, K=4", _comparison),
    "averaging_hurts": Source("digits and Fashion-MNIST", averaging_hurts.effects),
    "sweep_digits": Source("digits with noisy labels, LeNet-300-100", sweep.effects),
    "sweep_fashion_mnist": Source("Fashion-MNIST, CNN-S, 3,000 images", sweep.effects),
    "landscape_fashion_mnist": Source("Fashion-MNIST, 2,000 images", landscape_claims.effects),
    "landscape_fashion_mnist_resnet8": Source("Fashion-MNIST, 2,000 images", landscape_claims.effects),
    "swamp_fashion_mnist": Source("Fashion-MNIST, LeNet-300-100, 20,000 images", swamp_claims.effects),
    "swamp_fashion_mnist_cnn": Source("Fashion-MNIST, CNN-M", swamp_claims.effects),
}

# Directory -> what its report is about; no claim reads from it.
BESIDE = {
    "sweep_swamp_digits": "SWAMP's N, SWA's start, period and rate, fraction per cycle and T0, each alone, on digits",
    "landscape_plane": "the plane through three weight vectors of one training by HWA, with its trajectory, and the segments between them",
    "communication": "what synchronizing costs between two hosts, measured and predicted",
    "compiled_ahead": "what each device holds, and when it communicates, by the compilers for TPUs and GPUs",
    "benchmarks_cpu": "speed and memory on two CPU cores",
    "benchmarks_cpu_onednn": "the same with oneDNN's convolutions",
    "benchmarks_cpu_two_devices": "the same with huge pages and two devices on the CPU",
}
