"""The small parts of a training: durations, configuration, clock, interruption, dry run."""

import functools
import itertools
import json
import operator
import os
import signal
import types

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hwa_jax.errors import UserError
from hwa_jax.report.dry_run import describe
from hwa_jax.training import clock as clock_module
from hwa_jax.training.clock import Clock
from hwa_jax.training.config import MAY_CHANGE_ON_RESUME, default_config, default_swamp_config, differences, validate
from hwa_jax.training.duration import Duration
from hwa_jax.training.interruption import Interruption
from hwa_jax.training.periods import Periods
from training_runs import compilation_cache_dir, compiled_once, small_config, small_setup  # noqa: F401


@given(st.integers(0, 10**9), st.sampled_from(["{} steps", "{} step", " {}steps ", "{}"]), st.integers(1, 1000))
def test_steps_are_steps(count, form, steps_per_epoch):
    text = form.format(count)
    duration = Duration.parse(int(text) if form == "{}" else text)
    assert duration == Duration(count, "steps")
    assert duration.steps(steps_per_epoch) == count


@given(st.integers(0, 10**6), st.integers(0, 99), st.sampled_from(["epochs", "epoch"]), st.integers(1, 10**4))
def test_epochs_round_halves_up(whole, hundredths, unit, steps_per_epoch):
    steps = Duration.parse(f"{whole}.{hundredths:02d} {unit}").steps(steps_per_epoch)
    exact = (100 * whole + hundredths) * steps_per_epoch  # in hundredths of a step
    # A product of floats may fall on either side of an exact half.
    assert steps == (exact + 50) // 100 or (exact % 100 == 50 and steps == exact // 100)


@given(st.integers(0, 100), st.integers(1, 10**6))
@example(50, 510511)
def test_percent_is_of_the_whole_training(percent, total):
    assert Duration.parse(f"{percent}%").steps(7, total) == (percent * total + 50) // 100


@given(st.one_of(
    st.text(max_size=12), st.floats(), st.booleans(), st.none(), st.integers(max_value=-1), st.just("-1 steps"),
    st.just("1e3 steps"), st.just("0.5 steps"), st.just("2 epochs 3 steps"), st.just("nan epochs"), st.just("١ steps"),
))
def test_anything_else_is_refused_in_one_line(text):
    try:
        duration = Duration.parse(text, "hwa.sync_period")
    except UserError as error:
        assert str(error).startswith(f"hwa.sync_period={text!r}: ")
    else:
        assert duration.value >= 0 and duration.unit in ("steps", "epochs", "percent")
        assert any(unit in text for unit in ("step", "epoch", "%"))


def test_percent_of_nothing():
    with pytest.raises(ValueError, match="total_steps"):
        Duration.parse("5%").steps(10)
    with pytest.raises(UserError, match="training.duration='50%': percent of what"):
        Periods.of(small_config({"training.duration": "50%"}), 9)


def test_pushes_after_sync_start_at_offline_start_and_at_the_end():
    periods = Periods.of(small_config({
        "hwa.sync_period": "2 steps", "hwa.push_every": "4 steps", "hwa.sync_start": "3 steps", "hwa.offline_start": "8 steps",
    }), 9)
    # Synchronizations at 1, 2, 3, 5, 7, ...; pushes at 3 + 4i, not before 8, and at the end, 18.
    assert [done for done in range(1, 19) if periods.is_push(done)] == [11, 15, 18]
    assert [done for done in range(1, 19) if periods.is_regular_push(done)] == [11, 15]


@pytest.mark.parametrize("begin", [default_config, default_swamp_config])
def test_defaults_are_valid_and_every_field_is_needed(begin):
    config = begin()
    assert validate(config, begin) is None
    with config.unlocked():
        del config.training.batch_size
    with pytest.raises(UserError, match="^training.batch_size is missing in the configuration: get_config"):
        validate(config, begin)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hwa.num_replicas", 0), ("hwa.window_size", 0), ("hwa.keep_pushes", -1), ("training.batch_size", 0),
        ("evaluation.batch_size", 0), ("checkpoint.keep", 0), ("num_devices", -1), ("optimizer.learning_rate", -0.1),
        ("optimizer.learning_rate", float("nan")), ("optimizer.weight_decay", float("nan")), ("optimizer.momentum", 1.0),
        ("training.label_smoothing", 1.0), ("training.ema_decay", -0.1), ("data.validation_fraction", float("nan")),
        ("model.norm", "layer"), ("model.dtype", "float16"), ("hwa.data_mode", "split"), ("hwa.optimizer_state", "keep"),
        ("hwa.sync_period", "often"), ("evaluation.every", "1.5 steps"), ("schedule.warmup", ""),
        ("optimizer.lookahead_rate", -0.5), ("optimizer.learning_rate", float("inf")), ("seed", -1), ("seed", 2**32),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(UserError) as refused:
        validate(small_config({field: value}))
    assert str(refused.value).startswith(f"{field}={value!r}: ")
    assert "\n" not in str(refused.value)


def test_differences_survive_json():
    config = small_config()
    stored = json.loads(json.dumps(config.to_dict()))
    assert differences(stored, config) == []
    stored["hwa"]["window_size"], stored["schedule"]["milestones"][0] = 7, "10%"
    stored["old"] = 1
    assert differences(stored, config) == [
        ("hwa.window_size", 7, 3), ("old", 1, None), ("schedule.milestones", ["10%", "75%"], ["50%", "75%"]),
    ]


def test_a_field_of_a_later_version_had_its_default():
    stored, config = default_config().to_dict(), default_config()
    del stored["training"]["steps_per_call"], stored["data"]["flip"]
    assert differences(stored, config) == []
    config.data.flip = True
    assert differences(stored, config) == [("data.flip", False, True)]


def test_an_option_that_appears_is_a_difference():
    stored, config = default_config().to_dict(), default_config()
    with config.unlocked():
        config.optimizer.options.b1 = 0.5
    assert differences(stored, config) == [("optimizer.options.b1", None, 0.5)]


def test_fields_that_may_change_exist():
    for field in MAY_CHANGE_ON_RESUME:
        *groups, name = field.split(".")
        assert name in functools.reduce(operator.getitem, groups, default_config())


def test_clock_gives_every_second_to_one_activity(monkeypatch):
    # No time is measured: every look at it is one second later, and other threads look at another one.
    now = itertools.count(100.0)
    monkeypatch.setattr(clock_module, "time", types.SimpleNamespace(perf_counter=lambda: next(now)))
    clock = Clock({"training": 5.0, "evaluation": 2.0})  # at 100
    with clock.activity("evaluation"):  # training until 101
        with clock.activity("checkpoint"):  # evaluation until 102
            pass  # checkpoint until 103
        with pytest.raises(KeyError), clock.activity("checkpoint"):  # evaluation until 104
            raise KeyError  # checkpoint until 105
    # evaluation until 106, training until 107
    assert clock.seconds() == {"training": 7.0, "evaluation": 5.0, "checkpoint": 2.0}
    assert clock.seconds()["training"] == 8.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interruption_asks_once_and_restores(number):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert not interruption.requested()
        os.kill(os.getpid(), number)
        assert interruption.requested()
        # The second of the kind ends the process.
        assert signal.getsignal(number) is signal.SIG_DFL
    assert signal.getsignal(number) is before


def test_dry_run_says_what_a_run_takes(compiled_once):  # noqa: F811
    setup = small_setup({"hwa.num_replicas": 3})
    lines = describe(setup, num_members=5).splitlines()
    said = {line[:24].strip(): line[24:] for line in lines if line[:1].isalpha()}
    assert said["replicas K"] == "3 on 1 device(s)"
    assert said["steps"] == "18 per replica, 9 per epoch"
    assert said["synchronization H"] == "every 4 steps, 4 in all"
    assert said["window I"] == "3 pushes, one every 4 steps, 5 kept on disk"
    assert said["images"].startswith("90 training, 30 validation, 500 test")
    # 64·300 + 300 + 300·100 + 100 + 100·10 + 10 weights
    assert any(line.startswith("total") and "50,610" in line and "202,440" in line for line in lines)
    assert "temporary" in said["memory of the step"] and "ms per step" in said["time"]
