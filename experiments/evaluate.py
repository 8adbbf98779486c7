"""Evaluates what a training has stored, or exports it as one file with a model card.

    python experiments/evaluate.py --workdir=runs/digits --split=validation,test --weights=outer,hwa
    python experiments/evaluate.py export --workdir=runs/digits --output=digits.safetensors

Nothing is trained, and nothing is written into the work directory: the card is digits.md beside
the file, and shows the three lines of Python that load it.
"""

import pathlib

from absl import flags

from hwa_jax.algorithms import stored_run
from hwa_jax.errors import UserError
from hwa_jax.report.model_card import model_card
from hwa_jax.report.tables import print_metrics
from hwa_jax.storage import atomic
from hwa_jax.training import program

_WORKDIR = flags.DEFINE_string("workdir", None, "directory of experiments/train_hwa.py")
_WEIGHTS = flags.DEFINE_list("weights", [], "some of inner, outer, hwa, ema, slow; evaluate: all, export: hwa")
_SPLIT = flags.DEFINE_list("split", ["validation"], "evaluate: some of train, validation, test")
_OUTPUT = flags.DEFINE_string("output", None, "export: FILE.safetensors")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "export: replace --output")
flags.mark_flag_as_required("workdir")


def main(command: str | None) -> None:
    program.enable_compilation_cache(f"{_WORKDIR.value}.compiled")
    if command == "export":
        _export()
    else:
        run = stored_run.open_run(_WORKDIR.value)
        print(f"step {int(run.state.step)} of {run.setup.periods.total}")
        print_metrics(stored_run.evaluate(run, _WEIGHTS.value, _SPLIT.value))


def _export() -> None:
    if not _OUTPUT.value or not _OUTPUT.value.endswith(".safetensors"):
        raise UserError(f"--output={_OUTPUT.value}: export writes a file whose name ends in .safetensors")
    if len(_WEIGHTS.value) > 1:
        raise UserError(f"--weights={','.join(_WEIGHTS.value)}: export writes one set of weights")
    output, card = pathlib.Path(_OUTPUT.value), pathlib.Path(_OUTPUT.value).with_suffix(".md")
    for path in (output, card):
        program.require_writable(path, overwrite=_OVERWRITE.value)
    run = stored_run.open_run(_WORKDIR.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    facts = stored_run.export(run, output, *_WEIGHTS.value)
    atomic.write_text(card, model_card(facts, output.name))
    print_metrics({facts["weights"]: facts["metrics"]})
    print(f"weights: {output}   model card: {card}")


if __name__ == "__main__":
    program.run(main, commands=["export"])
