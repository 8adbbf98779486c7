"""Looks at the weights that a training has found: connectivity, convex hull, loss landscape, curvature.

    python experiments/analyze.py --workdir=runs/digits --output=runs/digits_analysis
    python experiments/analyze.py --workdir=runs/swamp --what=connectivity,hull --cycle=3 --output=runs/swamp_analysis

Works on directories of experiments/train_hwa.py and experiments/train_swamp.py, nothing is written there. Without
--what all instruments are used that the weights allow. The validation split is looked at unless --split says
otherwise; curvature is that of the training loss.
"""

from absl import flags
from tqdm import tqdm

from hwa_jax.algorithms.stored_weights import open_weights
from hwa_jax.analysis import studies
from hwa_jax.errors import UserError
from hwa_jax.report.analysis_report import INSTRUMENTS, write_report
from hwa_jax.training import program

_WORKDIR = flags.DEFINE_string("workdir", None, "directory of experiments/train_hwa.py or experiments/train_swamp.py")
_OUTPUT = flags.DEFINE_string("output", None, "directory for report.md, plots and results.json; made, or files replaced")
_WHAT = flags.DEFINE_list("what", list(INSTRUMENTS), f"some of {', '.join(INSTRUMENTS)}")
_SPLIT = flags.DEFINE_enum("split", None, ["train", "validation", "test"], "where to evaluate; train for curvature, else validation")
_EXAMPLES = flags.DEFINE_integer("examples", 2000, "at most so many examples of the split, its first ones", lower_bound=1)
_CYCLE = flags.DEFINE_integer("cycle", None, "of a pruning: whose particles; the last finished one", lower_bound=0)
_POSITIONS = flags.DEFINE_integer("positions", 31, "connectivity: points on each segment, both ends included", lower_bound=2)
_POINTS = flags.DEFINE_integer("points", 200, "hull: points inside", lower_bound=1)
_CONCENTRATION = flags.DEFINE_float("concentration", 1.0, "hull: of the Dirichlet weights; 1 is uniform", lower_bound=1e-3)
_RESOLUTION = flags.DEFINE_integer("resolution", 31, "landscape: points along each axis", lower_bound=2)
_SAMPLES = flags.DEFINE_integer("samples", 32, "curvature: random vectors for trace and sharpness", lower_bound=2)
_ITERATIONS = flags.DEFINE_integer("iterations", 40, "curvature: Lanczos iterations", lower_bound=3)
_SEED = flags.DEFINE_integer("seed", 0, "of hull points, random directions and vectors", lower_bound=0)
flags.mark_flags_as_required(["workdir", "output"])


def main() -> None:
    unknown = [what for what in _WHAT.value if what not in INSTRUMENTS]
    if unknown or not _WHAT.value:
        raise UserError(f"--what={','.join(_WHAT.value)}: give some of {', '.join(INSTRUMENTS)}")
    program.require_directory(_OUTPUT.value)
    subject = open_weights(_WORKDIR.value, _CYCLE.value)
    found, splits, left_out = {}, {}, {}
    for what in _WHAT.value:
        name = _SPLIT.value or ("train" if what == "curvature" else "validation")
        split = getattr(subject.setup, name).select(slice(_EXAMPLES.value))
        try:
            found[what], splits[what] = _study(what, subject, split), f"{name}, {split.num_examples:,} examples"
        except UserError as error:
            # Who asks for all instruments gets those that the weights allow: one particle has no hull.
            if flags.FLAGS["what"].present:
                raise
            left_out[what] = str(error)
            print(f"{what} is left out: {error}")
    if not found:
        raise UserError(f"--workdir={_WORKDIR.value}: none of the instruments can be used: {left_out['connectivity']}")
    config = subject.setup.config
    report = write_report(found, _OUTPUT.value, title=subject.title, splits=splits, meta={
        "seed": config.seed, "num_train": subject.setup.train.num_examples, "environment": subject.environment,
        "network": config.model.name, "data": config.data.name, "command": program.command_line(),
        **({"left out": left_out} if left_out else {}),
    })
    print(f"report with plots: {report}")


def _study(what, subject, split):
    if what == "connectivity":
        return studies.connectivity_study(subject, split, _POSITIONS.value, _bar)
    if what == "hull":
        return studies.hull_study(subject, split, _POINTS.value, _CONCENTRATION.value, _SEED.value, _bar)
    if what == "landscape":
        return studies.landscape_study(subject, split, _RESOLUTION.value, _SEED.value, _bar)
    return studies.curvature_study(subject, split, _SAMPLES.value, _ITERATIONS.value, _SEED.value, _bar)


def _bar(pieces, description):
    return tqdm(pieces, desc=description, disable=None, dynamic_ncols=True)


if __name__ == "__main__":
    program.run(main)
