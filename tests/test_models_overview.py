"""The parameter table, against golden strings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hwa_jax import models

PARAMS = {
    "conv": {"kernel": np.zeros((3, 3, 1, 200), np.float32), "bias": np.zeros(200, np.float32)},
    "dense": {"kernel": jnp.zeros((200, 10), jnp.bfloat16)},
    "temperature": np.zeros((), np.float64),
}

def test_table_with_statistics_and_mask():
    mask = {
        "conv": {"kernel": np.arange(1800).reshape(3, 3, 1, 200) < 900, "bias": optax.MaskedNode()},
        "dense": {"kernel": jnp.arange(2000).reshape(200, 10) < 50},
        "temperature": optax.MaskedNode(),
    }
    batch_stats = {"norm": {"mean": np.zeros(200, np.float32), "var": np.ones(200, np.float32)}}
    # 900 of 1800 and 50 of 2000 remain, 950 of the 3800 that may go: 25 %.
    assert models.overview(PARAMS, batch_stats, mask) == (
        "path                       shape           dtype     count   bytes  density\n"
        "conv/bias                  (200,)          float32     200     800        -\n"
        "conv/kernel                (3, 3, 1, 200)  float32   1,800   7,200   50.00%\n"
        "dense/kernel               (200, 10)       bfloat16  2,000   4,000    2.50%\n"
        "temperature                ()              float64       1       8        -\n"
        "total                                                4,001  12,008   25.00%\n"
        "\n"
        "norm/mean                  (200,)          float32     200     800\n"
        "norm/var                   (200,)          float32     200     800\n"
        "total of batch statistics                              400   1,600"
    )


def test_plain_table_has_no_density():
    lines = models.overview(PARAMS).splitlines()
    assert lines[0].split() == ["path", "shape", "dtype", "count", "bytes"]
    assert lines[-1].split() == ["total", "4,001", "12,008"]
    assert len(lines) == 1 + 4 + 1


def test_abstract_leaves_give_the_same_table():
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), PARAMS)
    assert models.overview(shapes) == models.overview(PARAMS)


def test_nothing_at_all():
    assert models.overview({}, {}, {}).splitlines()[1].split() == ["total", "0", "0", "-"]


@pytest.mark.parametrize(
    "mask", [{"dense": {"kernel": np.ones((10, 200), bool)}}, {"missing": np.ones(3, bool)}]
)
def test_mask_of_another_model_is_refused_by_name(mask):
    with pytest.raises(ValueError, match="mask leaf (dense/kernel|missing)"):
        models.overview(PARAMS, mask=mask)
