"""Every file that a pruning leaves, truncated, with a flipped bit, or missing: the same command ends at the same weights, or says in one line how it will."""

import random
import shutil
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file

from damaged_files import COMMON_ENDS, DAMAGES, are_equal, end_after, expected_end, files_by_kind
from hwa_jax.algorithms import cycle_files
from hwa_jax.errors import UserError
from hwa_jax.storage import safetensors, sparse_weights
from hwa_jax.training.session import Session
from pruning_runs import SMALL_PRUNING, prune
from short_runs import compilation_cache_dir, compiled_once, give_again, outside  # noqa: F401

# Three cycles; the weights of the particles differ from their average.
RUN = {**SMALL_PRUNING, "swamp.target_sparsity": 0.55, "schedule.name": "constant", "schedule.warmup": "0 steps"}
# As in test_damaged_files; the solution of both finished cycles is the average, and the particles' files are not needed any more.
ENDS = {
    **COMMON_ENDS,
    "weights.safetensors": ("same", "same", "same"),
    "ticket": ("refused", "refused", "refused"),
    "cycles/metrics.json": ("refused", "refused", "same"),
    "cycles/average.safetensors": ("refused", "refused", "refused"),
    "cycles/particle_0.safetensors": ("same", "same", "same"),
    "cycles/particle_1.safetensors": ("same", "same", "same"),
}


def exported(directory):
    return load_file(directory / "weights.safetensors")


def give_pruning_again(directory, *flags):
    return give_again(directory, *flags, program="train_swamp.py", config="swamp_digits.py", fields=RUN)


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


def test_kinds_of_files(interrupted):
    kinds = files_by_kind(interrupted)
    assert {
        "config.json", "environment.json", "metrics.jsonl", "results.json", "weights.safetensors", "ticket/tree.json", "checkpoints/tree.json",
        "cycles/metrics.json", "cycles/average.safetensors", "cycles/particle_0.safetensors", "cycles/particle_1.safetensors",
    } <= set(kinds)
    assert any(kind.startswith("checkpoints/arrays") for kind in kinds) and any(kind.startswith("ticket/arrays") for kind in kinds)
    assert [len(kinds[kind]) for kind in ("checkpoints/tree.json", "cycles/average.safetensors")] == [2, 2]


@pytest.mark.parametrize(("kind", "damage"), [
    ("cycles/average.safetensors", "bit flipped"), ("cycles/metrics.json", "missing"), ("ticket/tree.json", "bit flipped"),
    ("checkpoints/tree.json", "truncated"), ("weights.safetensors", "bit flipped"),
])
def test_one_damaged_file(interrupted, whole, tmp_path, kind, damage):
    path, rng = files_by_kind(interrupted)[kind][-1], random.Random(0)
    end = end_after(damage, interrupted, path, tmp_path, rng, whole=whole, give_again=give_pruning_again, exported=exported)
    assert end == expected_end(ENDS, kind, damage)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_kind_of_file(interrupted, whole, tmp_path, damage):
    rng, ends, expected = random.Random(damage), {}, {}
    for kind, paths in files_by_kind(interrupted).items():
        place = tmp_path / str(len(ends))
        path = rng.choice(paths)
        ends[kind] = end_after(damage, interrupted, path, place, rng, whole=whole, give_again=give_pruning_again, exported=exported)
        expected[kind] = expected_end(ENDS, kind, damage)
        shutil.rmtree(place)
    assert ends == expected


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
