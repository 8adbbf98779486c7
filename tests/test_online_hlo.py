"""Between two averages nothing is communicated: read from the compiled program, not from the source."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hwa_jax.training.hlo import collectives, computations
from jax.sharding import NamedSharding, PartitionSpec
from replicas import LAYOUTS, compiled, one_step, place, problem, start

from hwa_jax import online_average, with_online_average
from hwa_jax.particles import device_mesh, vectorize

NESTED = ("device", "particle")


def _compiled(layout, tx, lift=None, num_replicas=8, dtype=np.float32):
    params, data = (place(layout, tree) for tree in problem(num_replicas, dtype))
    step = jax.jit(lift(one_step(tx))) if lift else compiled(layout, tx)
    return step.lower(params, start(layout, tx, params), data).compile().as_text()


def _over_all_devices(step):
    return vectorize(step, mesh=device_mesh())


def _chain(axis_name):
    return optax.chain(optax.adam(0.1), online_average(5, axis_name, start_step=2))


@pytest.mark.parametrize("layout", ["shard_map", "shard_map unchecked", "pmap", "stacked and sharded"])
def test_one_all_reduce_and_only_in_a_conditional(layout):
    always, sometimes = collectives(_compiled(layout, _chain(LAYOUTS[layout][0])))
    assert always == []
    assert len(sometimes) == 1 and " all-reduce" in sometimes[0]


@pytest.mark.parametrize("policy", ["local", "average", "reset"])
def test_vmap_in_shard_map_with_batched_counters(policy):
    # 16 particles on 8 devices; both Adam's count and ours carry the particle axis.
    tx = with_online_average(optax.adam(0.1), 5, NESTED, optimizer_state=policy)
    always, sometimes = collectives(_compiled("vmap in shard_map", tx, _over_all_devices, num_replicas=16))
    assert always == []
    # Three weights and, for "average", their six moments travel together.
    assert len(sometimes) == 1 and " all-reduce" in sometimes[0]
    assert sometimes[0].split(" all-reduce")[0].count("f32[") == (9 if policy == "average" else 3)


def test_chain_in_vmap_in_shard_map():
    always, sometimes = collectives(_compiled("vmap in shard_map", _chain(NESTED), _over_all_devices, num_replicas=16))
    assert always == [] and len(sometimes) == 1


def test_stacked_and_sharded_with_a_wrapped_optimizer():
    # The second one is the scalar that becomes `distance`.
    always, sometimes = collectives(_compiled("stacked and sharded", with_online_average(optax.adam(0.1), 5, None)))
    assert always == [] and len(sometimes) == 2
    assert "f32[]" in sometimes[1]


def test_scan_over_steps_and_a_second_vmap_over_seeds():
    # Seeds are vmapped around particles, and all of it sits in a scan: two more chances to become a select.
    tx = _chain(NESTED)

    def train(params, state, data):
        def body(carry, _):
            return one_step(tx)(*carry, data), None

        return jax.lax.scan(body, (params, state), None, length=6)[0]

    particles = jax.vmap(train, axis_name="particle")
    step = jax.shard_map(
        jax.vmap(particles), mesh=device_mesh(), in_specs=PartitionSpec(None, "device"),
        out_specs=PartitionSpec(None, "device"), check_vma=False,
    )
    params, data = (jax.tree.map(lambda x: jnp.stack([x, x]), tree) for tree in problem(16, np.float32))
    state = jax.vmap(jax.vmap(tx.init))(params)
    always, sometimes = collectives(jax.jit(step).lower(params, state, data).compile().as_text())
    assert always == [] and len(sometimes) == 1


def test_multi_steps_inside_the_average():
    tx = optax.chain(optax.MultiSteps(optax.adam(0.1), 2), online_average(10, NESTED))
    always, sometimes = collectives(_compiled("vmap in shard_map", tx, _over_all_devices, num_replicas=16))
    assert always == [] and len(sometimes) == 1


def test_low_precision_shares_the_all_reduce_and_float64_has_at_most_one_of_its_own():
    with jax.enable_x64(True):
        params = {f"{dtype}{i}": jnp.zeros((16, 3), dtype) for dtype in ("bfloat16", "float32", "float64") for i in (0, 1)}
        tx = online_average(3, NESTED)
        step = jax.jit(vectorize(tx.update, mesh=device_mesh()))
        text = step.lower(params, jax.vmap(tx.init)(params), params).compile().as_text()
    always, sometimes = collectives(text)
    assert always == [] and 1 <= len(sometimes) <= 2
    carried = " ".join(line.split(" all-reduce")[0] for line in sometimes)
    assert carried.count("f32[") == 4 and carried.count("f64[") == 2


def test_replicas_on_one_device_communicate_nothing():
    always, sometimes = collectives(_compiled("vmap", _chain("replica")))
    assert always == [] and sometimes == []


def test_the_reader_sees_an_all_reduce_that_runs_on_every_step():
    # The plain conditional on a batched counter, which the transform avoids: vmap makes a select of it.
    def naive(count, p):
        return jax.lax.cond(count % 5 == 0, lambda p: jax.lax.pmean(p, NESTED), lambda p: p, p)

    step = jax.jit(vectorize(naive, mesh=device_mesh()))
    always, sometimes = collectives(step.lower(jnp.zeros(16, jnp.int32), jnp.ones((16, 3))).compile().as_text())
    assert len(always) == 1 and sometimes == []


def test_the_reader_follows_calls_but_not_branches():
    text = """
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %r = f32[] add(%a, %b)
}

%body (x: f32[2]) -> f32[2] {
  ROOT %s = f32[2] all-reduce(%x), to_apply=%sum
}

%rare (y: f32[2]) -> f32[2] {
  %g = f32[16] all-gather(%y), dimensions={0}
  ROOT %c = f32[2] call(%g), to_apply=%body
}

%keep (z: f32[2]) -> f32[2] {
  ROOT %z2 = f32[2] copy(%z)
}

ENTRY %main (p: f32[2], i: s32[]) -> f32[2] {
  %c2 = f32[2] conditional(%i, %p, %p), branch_computations={%keep, %rare}
  ROOT %w = f32[2] WHILE
}
"""
    assert set(computations(text)) == {None, "sum", "body", "rare", "keep", "main"}
    always, sometimes = collectives(text.replace("WHILE", "copy(%c2)"))
    assert always == [] and len(sometimes) == 2
    always, sometimes = collectives(text.replace("WHILE", "while(%c2), condition=%keep, body=%body"))
    assert len(always) == 1 and "all-reduce" in always[0] and "all-gather" in sometimes[0]


def test_sharded_replicas_stay_sharded():
    tx = _chain(None)
    params, data = (place("stacked and sharded", tree) for tree in problem(8, np.float32))
    result, state = jax.jit(one_step(tx))(params, tx.init(params), data)
    wanted = NamedSharding(device_mesh(), PartitionSpec("device"))
    for leaf in jax.tree.leaves((result, state[0][0].mu)):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
