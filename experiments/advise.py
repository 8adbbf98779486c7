"""What to set on day one, and what it costs on your network: K, H, I, and N and sparsity for SWAMP.

    python experiments/advise.py --model=resnet20 --bandwidth=100Mbit --latency=20ms --replicas=4 --step_time=35ms
    python experiments/advise.py --model=cnn_s --bandwidth=1Gbit --replicas=2 --measure --num_particles=4 --sparsity=0.9

--measure runs a few steps of the real training here, on images of noise; nothing is written.
"""

import re

import jax
from absl import flags

from hwa_jax.analysis.advice import Job
from hwa_jax.analysis.communication import Link
from hwa_jax.analysis.quantities import parse_bandwidth, parse_seconds
from hwa_jax.data.batches import steps_per_epoch
from hwa_jax.errors import UserError
from hwa_jax.report.advice import describe
from hwa_jax.training import program
from hwa_jax.training.step_cost import measure_step, setup_on_noise, tree_bytes

_MODEL = flags.DEFINE_string("model", None, "name of a network: cnn_s, resnet20, wrn-28-10, ...")
_BANDWIDTH = flags.DEFINE_string("bandwidth", None, "between two replicas, in each direction: 100Mbit, 1Gbit, 12.5MB")
_LATENCY = flags.DEFINE_string("latency", "0ms", "between two replicas: 20ms, 0.5s; one way, but between CPU hosts what ping shows")
_REPLICAS = flags.DEFINE_integer("replicas", 2, "K", lower_bound=1)
_STEP_TIME = flags.DEFINE_string("step_time", None, "of one optimizer step of one replica: 35ms")
_MEASURE = flags.DEFINE_bool("measure", False, "measure the step on this machine instead of --step_time")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "of a step of one replica", lower_bound=1)
_EXAMPLES = flags.DEFINE_integer("examples", 50000, "training images", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 20, "of one training in the trial", lower_bound=1)
_IMAGE = flags.DEFINE_string("image", "32x32x3", "height x width x channels")
_CLASSES = flags.DEFINE_integer("classes", 10, "number of classes", lower_bound=2)
_NUM_PARTICLES = flags.DEFINE_integer("num_particles", None, "N of SWAMP", lower_bound=1)
_SPARSITY = flags.DEFINE_float("sparsity", None, "share of the weights that SWAMP is to prune, above 0 and below 1")
flags.mark_flags_as_required(["model", "bandwidth"])


def main() -> None:
    link = Link(parse_bandwidth(_BANDWIDTH.value, "--bandwidth"), parse_seconds(_LATENCY.value, "--latency"))
    swamp, image = _swamp(), _image()
    if _MEASURE.value == (_STEP_TIME.value is not None):
        raise UserError("--step_time: give the time of a step, as in 35ms, or --measure, one of the two")
    given = None if _MEASURE.value else parse_seconds(_STEP_TIME.value, "--step_time", above_zero=True)
    per_epoch = steps_per_epoch(_EXAMPLES.value, _BATCH_SIZE.value, 1, "shared")
    setup = setup_on_noise(_MODEL.value, image, _CLASSES.value, _BATCH_SIZE.value)
    payload = tree_bytes(jax.eval_shape(setup.model.init, jax.random.key(0)))
    seconds = given or measure_step(setup, setup.initial_state(), {}).seconds
    measured = "as given" if given else f"measured here on images of noise, {jax.devices()[0].device_kind}"
    job = Job(payload, seconds, per_epoch, _EPOCHS.value, _REPLICAS.value)
    print(describe(job, link, model=_MODEL.value, measured=measured, swamp=swamp))


def _image() -> tuple[int, int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", _IMAGE.value)
    if not match:
        raise UserError(f"--image={_IMAGE.value}: write height, width and channels as in 32x32x3")
    return tuple(map(int, match.groups()))


def _swamp() -> tuple[int, float] | None:
    if _NUM_PARTICLES.value is None and _SPARSITY.value is None:
        return None
    if _NUM_PARTICLES.value is None or _SPARSITY.value is None:
        raise UserError("--num_particles, --sparsity: SWAMP needs both, 4 and 0.9 for example")
    if not 0 < _SPARSITY.value < 1:
        raise UserError(f"--sparsity={_SPARSITY.value}: must be above 0 and below 1")
    return _NUM_PARTICLES.value, _SPARSITY.value


if __name__ == "__main__":
    program.run(main)
