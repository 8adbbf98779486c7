"""Every file that a pruning leaves, truncated, with a flipped bit, or missing: the same command ends at the same weights, or says one clear line."""

import random
import re
import shutil
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file

from damaged_files import DAMAGES, are_equal, files_by_kind, give_again_after
from hwa_jax.algorithms import cycle_files
from hwa_jax.errors import UserError
from hwa_jax.storage import safetensors, sparse_weights
from hwa_jax.training.session import Session
from pruning_runs import SMALL_PRUNING, prune
from short_runs import compilation_cache_dir, compiled_once, give_again, outside  # noqa: F401

# Three cycles; the weights of the particles differ from their average.
RUN = {**SMALL_PRUNING, "swamp.target_sparsity": 0.55, "schedule.name": "constant", "schedule.warmup": "0 steps"}


def exported(directory):
    return load_file(directory / "weights.safetensors")


def give_pruning_again(directory):
    return give_again(directory, "train_swamp.py", "swamp_digits.py", RUN)


@pytest.fixture(scope="module")
def whole(outside, tmp_path_factory):  # noqa: F811
    directory = tmp_path_factory.mktemp("whole") / "run"
    prune(directory, RUN)
    return exported(directory)


@pytest.fixture(scope="module")
def interrupted(outside, tmp_path_factory):  # noqa: F811
    """A run of two cycles that was finished, went on to a higher sparsity, and was stopped in its third."""
    directory = tmp_path_factory.mktemp("damaged") / "run"
    prune(directory, {**RUN, "swamp.target_sparsity": 0.3})
    step = Session.step

    def stopped(session, state, count):
        if int(state.step) == 10:
            signal.raise_signal(signal.SIGTERM)
        return step(session, state, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "step", stopped)
        assert prune(directory, RUN) is None
    return directory


def continue_damaged(run, whole, path, damage, rng, place):
    """Damages a copy and gives the same command: "same", "refused", or "made again" after what the line advises."""
    copy, ended, weights = give_again_after(damage, run, path, place, rng, give_again=give_pruning_again, exported=exported)
    assert weights is None or are_equal(weights, whole), (path, damage, ended.stderr)
    if weights is not None:
        return "same"
    advised = re.search(r"or delete (\S+), and the training makes it again", ended.stderr)
    if not advised:
        return "refused"
    shutil.rmtree(advised[1])
    assert give_pruning_again(copy).code == 0 and are_equal(exported(copy), whole), (path, damage)
    return "made again"


def test_kinds_of_files(interrupted):
    kinds = files_by_kind(interrupted)
    assert {
        "config.json", "environment.json", "metrics.jsonl", "results.json", "weights.safetensors", "ticket/tree.json", "checkpoints/tree.json",
        "cycles/metrics.json", "cycles/average.safetensors", "cycles/particle_0.safetensors", "cycles/particle_1.safetensors",
    } <= set(kinds)
    assert any(kind.startswith("checkpoints/arrays") for kind in kinds) and any(kind.startswith("ticket/arrays") for kind in kinds)
    assert [len(kinds[kind]) for kind in ("checkpoints/tree.json", "cycles/average.safetensors")] == [2, 2]


@pytest.mark.parametrize(("kind", "damage", "end"), [
    ("cycles/average.safetensors", "bit flipped", "made again"), ("cycles/metrics.json", "missing", "same"),
    ("ticket/tree.json", "bit flipped", "refused"), ("checkpoints/tree.json", "truncated", "same"), ("weights.safetensors", "bit flipped", "same"),
])
def test_one_damaged_file(interrupted, whole, tmp_path, kind, damage, end):
    path = files_by_kind(interrupted)[kind][-1]
    assert continue_damaged(interrupted, whole, path, damage, random.Random(0), tmp_path) == end


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_kind_of_file(interrupted, whole, tmp_path, damage):
    rng, ends = random.Random(damage), {}
    for kind, paths in files_by_kind(interrupted).items():
        place = tmp_path / str(len(ends))
        ends[kind] = continue_damaged(interrupted, whole, rng.choice(paths), damage, rng, place)
        shutil.rmtree(place)
    print(ends)
    assert ends["cycles/average.safetensors"] == "made again" and ends["checkpoints/tree.json"] == "same"


def test_the_solution_of_a_cycle_is_not_another_one(interrupted, whole, tmp_path):
    """A digit that names another particle, with a file that is whole."""
    copy = shutil.copytree(interrupted, tmp_path / "run")
    file = copy / "cycles" / "001" / "metrics.json"
    text = file.read_text()
    assert text.count('"solution": "average"') == 1
    file.write_text(text.replace('"solution": "average"', '"solution": "particle_1"'))
    ended = give_pruning_again(copy)
    assert ended.code == 2 and f"{file}: is damaged (the checksum differs); restore it; or delete {file.parent}, and" in ended.stderr


@pytest.mark.parametrize("text", ["[1]", "1", '"a"', "[]"])
def test_metrics_of_a_cycle_that_are_no_object(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(UserError, match=r"metrics\.json: is damaged \(holds no JSON object\); restore it; or delete") as raised:
        cycle_files.read_metrics(tmp_path)
    assert "\n" not in str(raised.value)


def test_every_flipped_bit_of_a_file_of_weights_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "w.safetensors"
    mask = {"kernel": np.array([[True, False, True]] * 3)}
    params = {"kernel": np.arange(9, dtype=np.float32).reshape(3, 3) * mask["kernel"], "bias": np.ones(3, np.float32)}
    sparse_weights.save_sparse_weights(path, params, {"norm": {"mean": np.zeros(2, np.float32)}}, mask, {"about": "text"})
    content, arrays = path.read_bytes(), load_file(path)
    noticed = 0
    for place in range(8 * len(content)):
        altered = bytearray(content)
        altered[place // 8] ^= 1 << place % 8
        path.write_bytes(altered)
        try:
            found, _ = safetensors.read_arrays(path)
        except UserError as error:
            assert "\n" not in str(error)
            noticed += 1
        else:
            assert are_equal(found, arrays), place
    # What is left are the name of the entry that holds the checksum, and the way in which JSON may be written.
    assert noticed > 0.9 * 8 * len(content)
