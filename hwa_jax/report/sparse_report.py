"""What an exported sparse network saves: parameters, operations, bytes, and time."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hwa_jax.report.tables import NOT_AVAILABLE, format_bytes, markdown_table, print_table
from hwa_jax.training.latency import MARGIN

_HOW_TO_READ = """\
Parameters are weights, biases, and scales and offsets of normalization. FLOPs are counted from the shapes of the
dense and convolutional layers: a multiply-add counts as 2, those with padding too; bias, normalization and activation
are left out. The dense file is a safetensors file of the same arrays with their zeros and without metadata; the sparse
one is the exported file with all that it says. CSR needs 8 bytes a weight, 4 of them for its column.
"""

_TIMING = f"""\
Milliseconds for one batch, the median of at least 5 repeats after warm-up, in turns; batches of noise, uint8 in and
logits out. Dense is the whole network with its zeros, compiled by JAX. `predict` is what `load_sparse_predictor`
returns: SciPy's CSR product in the layers named here, which measured faster, and the dense one elsewhere. "Same" means
within {MARGIN:.0%}. Other load on the machine makes all of this slower and less certain: the load average above is the
number of busy threads in the minute before.
"""

_LAYERS = """\
Milliseconds of each layer alone, dense / CSR; a dash where CSR was not tried, since the layer is not pruned or its
input as a matrix does not fit. A layer that loses alone can win beside others, and the whole network decides: fewer
compiled pieces have to be called.
"""


def sparse_report(found: dict[str, Any], command: str) -> str:
    """Markdown of what `hwa_jax.algorithms.sparse_export.export` returned.

    Args:
        found: as it was returned.
        command: that makes the report again.
    """
    facts = found["facts"]
    environment = [[name, "unknown" if value is None else str(value)] for name, value in found["environment"].items()]
    return f"""# What sparsity saves: {facts["model"]["name"]} trained on {facts["config"]["data"]["name"]}

Cycle {facts["cycle"]}, {facts["sparsity"]:.1%} of the prunable weights are gone. Measured with `{command}`.

{markdown_table(["measured with", ""], environment, "ll")}

## Size

{markdown_table(_SIZE_HEADER, _size_rows(found), "lrrr")}

{_HOW_TO_READ}
## Latency on this CPU

{markdown_table(_LATENCY_HEADER, _latency_rows(found["latency"]), "rrrrlrl")}

{_TIMING}
The largest difference between the two in a logit was {max(row["largest_difference"] for row in found["latency"]):.1e}.

## Layers

{markdown_table(*_layer_table(found))}

{_LAYERS}"""


def print_report(found: dict[str, Any]) -> None:
    """The tables of size and latency in a terminal."""
    print_table(_SIZE_HEADER, _size_rows(found), "lrrr")
    print()
    print_table(_LATENCY_HEADER[:-1], [row[:-1] for row in _latency_rows(found["latency"])], "rrrrlr")


def verdict(seconds: Mapping[str, float]) -> str:
    """Whether `predict` is faster or slower than dense, in a word.

    Example:
        >>> [verdict({"dense": 1.0, "predict": time}) for time in (0.9, 0.96, 1.04, 1.1)]
        ['faster', 'same', 'same', 'slower']
    """
    ratio = seconds["predict"] / seconds["dense"]
    return "same" if abs(ratio - 1) <= MARGIN else "faster" if ratio < 1 else "slower"


_SIZE_HEADER = ["", "dense", "sparse", "sparse / dense"]
_LATENCY_HEADER = ["batch", "dense, ms", "predict, ms", "dense / predict", "verdict", "weights of predict", "layers in CSR"]


def _size_rows(found):
    parameters, flops, size = found["parameters"], found["flops"], found["bytes"]
    rows = [
        ("parameters", parameters["dense"], parameters["remaining"], "{:,}".format),
        ("prunable weights", parameters["prunable"], parameters["prunable_remaining"], "{:,}".format),
        ("FLOPs per image", flops["dense"], flops["sparse"], "{:,}".format),
        ("file", size["dense_file"], size["sparse_file"], format_bytes),
        ("weights in memory, all layers in CSR", size["dense_weights"], size["csr_weights"], format_bytes),
    ]
    return [[name, write(dense), write(sparse), f"{sparse / dense:.1%}"] for name, dense, sparse, write in rows]


def _latency_rows(latency: Sequence[Mapping[str, Any]]):
    return [
        [
            str(row["batch_size"]), _milliseconds(row["seconds"]["dense"]), _milliseconds(row["seconds"]["predict"]),
            f"{row['seconds']['dense'] / row['seconds']['predict']:.2f}", verdict(row["seconds"]), format_bytes(row["weight_bytes"]),
            ", ".join(map(_layer_name, row["csr_layers"])) or "none",
        ]
        for row in latency
    ]


def _layer_table(found):
    sizes = [str(row["batch_size"]) for row in found["latency"]]
    rows = [
        [
            _layer_name(layer["name"]), " × ".join(map(str, layer["shape"])),
            f"{layer['weights']['remaining'] / math.prod(layer['shape']):.2%}",
            f"{layer['flops']['dense']:,}", f"{layer['flops']['sparse']:,}", *(_both(layer["seconds"][size]) for size in sizes),
        ]
        for layer in found["layers"]
    ]
    header = ["layer", "kernel", "density", "FLOPs dense", "FLOPs sparse", *(f"batch {size}" for size in sizes)]
    return header, rows, "llrrr" + "r" * len(sizes)


def _both(seconds):
    return NOT_AVAILABLE if seconds is None else f"{_milliseconds(seconds['dense'])} / {_milliseconds(seconds['csr'])}"


def _milliseconds(seconds):
    return f"{1e3 * seconds:.3g}"


def _layer_name(kernel):
    return kernel.removeprefix("params/").removesuffix("/kernel")
