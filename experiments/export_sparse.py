"""Exports a pruned network: bit masks and remaining values in one file, a model card, and what it saves.

    python experiments/export_sparse.py --workdir=runs/swamp --output=digits.safetensors

Nothing is trained, and nothing is written into the work directory. Beside the file lie digits.md, the model card, and
digits.report.md and .json: parameters, operations, bytes, and the latency on this machine's CPU, which is measured now.
"""

import pathlib

from absl import flags

from hwa_jax.algorithms import sparse_export
from hwa_jax.errors import UserError
from hwa_jax.report.model_card import sparse_model_card
from hwa_jax.report.sparse_report import print_report, sparse_report
from hwa_jax.storage import atomic
from hwa_jax.training import program

_WORKDIR = flags.DEFINE_string("workdir", None, "directory of experiments/train_swamp.py")
_OUTPUT = flags.DEFINE_string("output", None, "FILE.safetensors; by default WORKDIR.safetensors")
_CYCLE = flags.DEFINE_integer("cycle", None, "which cycle, from 0; by default the last one that is finished")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "8", "64", "512"], "for which latency is measured")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace --output and what lies beside it")
flags.mark_flag_as_required("workdir")


def main() -> None:
    output = pathlib.Path(_OUTPUT.value or f"{pathlib.Path(_WORKDIR.value)}.safetensors")
    if output.suffix != ".safetensors":
        raise UserError(f"--output={output}: give a file whose name ends in .safetensors")
    if not _BATCH_SIZES.value or not all(size.isdecimal() and int(size) for size in _BATCH_SIZES.value):
        raise UserError(f"--batch_sizes={','.join(_BATCH_SIZES.value)}: give whole numbers of at least 1, such as 1,8,64")
    card, report, figures = (output.with_suffix(suffix) for suffix in (".md", ".report.md", ".report.json"))
    for path in (output, card, report, figures):
        program.require_writable(path, overwrite=_OVERWRITE.value)
    cycle = sparse_export.open_cycle(_WORKDIR.value, _CYCLE.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    found = sparse_export.export(cycle, output, [int(size) for size in _BATCH_SIZES.value])
    atomic.write_text(card, sparse_model_card(found["facts"], output.name))
    atomic.write_text(report, sparse_report(found, program.command_line()))
    atomic.write_json(figures, found)
    print_report(found)
    print(f"weights: {output}   model card: {card}   report: {report}")


if __name__ == "__main__":
    program.run(main)
