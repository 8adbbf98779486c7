"""Arrays that travel as one vector between processes on CPUs, against each on its own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from hwa_jax import collectives

TREE = {
    "matrix": np.arange(24, dtype=np.float32).reshape(4, 3, 2), "half": np.arange(4, dtype=np.float16), "empty": np.zeros((4, 0), np.float32),
    "counts": np.arange(8, dtype=np.int32).reshape(4, 2), "scalar": np.arange(4, dtype=np.float32) / 8,
}


@pytest.fixture
def several_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)


@pytest.mark.parametrize("operation, oracle", [(lax.psum, np.sum), (lax.pmean, np.mean)])
@pytest.mark.parametrize("over", ["vmap", "shard_map", "both"])
def test_results_are_those_of_each_array(several_processes, operation, oracle, over):
    tree = {name: leaf for name, leaf in TREE.items() if operation is lax.psum or name != "counts"}
    results = {
        "vmap": lambda: jax.vmap(lambda x: collectives.together(operation, x, "particle"), axis_name="particle")(tree),
        "shard_map": lambda: compiled(operation)(tree),
        "both": lambda: two_levels(operation)(tree),
    }[over]()
    for name, leaf in tree.items():
        expected = np.broadcast_to(oracle(leaf, axis=0, keepdims=True), leaf.shape)
        np.testing.assert_array_equal(results[name], expected, strict=False)
        assert results[name].dtype == leaf.dtype and results[name].shape == leaf.shape


def test_nothing_is_nothing(several_processes):
    # The statistics of a network without BatchNorm.
    assert collectives.together(lax.psum, {"norm": ()}, "device") == {"norm": ()}


def test_one_vector_for_every_dtype(several_processes):
    text = compiled(lax.psum).lower(TREE).compile().as_text()
    sent = re.findall(r"= (.*?) all-reduce\(", text)
    sizes = sorted(size for line in sent for size in re.findall(r"\b(?:f32|f16|s32)\[\d+\]", line))
    # A device's: 6 + 0 + 1 floats, one half, two counts; XLA:CPU sums halves as floats.
    assert len(sizes) == 3 and sizes[1:] == ["f32[7]", "s32[2]"]


def test_within_one_process_nothing_is_copied():
    text = compiled(lax.psum).lower(TREE).as_text()
    assert "concatenate" not in text and "all_reduce" in text


def compiled(operation):
    """Over four devices, an array's rows one each."""
    mesh = jax.make_mesh((4,), ("device",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    return jax.jit(jax.shard_map(lambda x: collectives.together(operation, x, "device"), mesh=mesh, in_specs=P("device"), out_specs=P("device"), check_vma=False))


def two_levels(operation):
    """Over two devices with two rows each."""
    mesh = jax.make_mesh((2,), ("device",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    own = jax.vmap(lambda x: collectives.together(operation, x, ("device", "particle")), axis_name="particle")
    return jax.jit(jax.shard_map(own, mesh=mesh, in_specs=P("device"), out_specs=P("device"), check_vma=False))
