"""A program that trains, as several processes with fake devices, from start to end."""

import signal
import socket
import subprocess
import sys
from typing import Any, NamedTuple

from programs import ROOT, SECONDS, process_environment
from pruning_runs import SMALL_PRUNING
from training_runs import SMALL

# 20 steps: five cycles of 4; K = 4 on four devices in all.
FIELDS = {
    **SMALL, "num_devices": 0, "hwa.num_replicas": 4, "training.duration": "20 steps", "optimizer.momentum": 0.9,
    "evaluation.every": "20 steps", "checkpoint.every": "10 steps", "logging.every": "10 steps",
}
# A ticket of 4 steps and cycles of 8; N = 4, each of which collects its weights at steps 6 and 8; BatchNorm, a gate and two cycles.
PRUNING_FIELDS = {
    **SMALL_PRUNING, "num_devices": 0, "swamp.num_particles": 4, "swamp.gate_fraction": 0.1, "swamp.averaging": "when_safe",
    "swamp.target_sparsity": 0.3, "model.norm": "batch", "schedule.name": "constant", "schedule.warmup": "0 steps",
}


class Program(NamedTuple):
    """A program, its configuration file, and dotted name -> value of fields."""

    script: str
    config: str
    fields: dict[str, Any]


TRAIN_HWA = Program("experiments/train_hwa.py", "configs/hwa_digits.py", FIELDS)
TRAIN_SWAMP = Program("experiments/train_swamp.py", "configs/swamp_digits.py", PRUNING_FIELDS)


def free_port():
    """A port of this machine that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Processes:
    """A training of several processes; a context manager that leaves none of them behind.

    Args:
        directory: the work directory.
        num_processes: how many.
        devices: fake devices of each.
        fields: dotted name -> value, on top of those of the program.
        program: what they run.
        compiled: directory of compiled programs.
        others: further flags by process.
        environment: further variables.
    """

    def __init__(self, directory, num_processes, devices, fields=(), *, program=TRAIN_HWA, compiled, others=None, environment=()):
        command = [
            sys.executable, str(ROOT / program.script), f"--config={ROOT / program.config}", f"--workdir={directory}",
            *(f"--config.{field}={value}" for field, value in {**program.fields, **dict(fields)}.items()),
        ]
        if num_processes > 1:
            command += [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={num_processes}"]
        variables = {**process_environment(devices, compiled), **dict(environment)}
        self.all = []
        for number in range(num_processes):
            mine = [*command, *[f"--process_id={number}"] * (num_processes > 1), *(others or {}).get(number, ())]
            self.all.append(subprocess.Popen(mine, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))

    def ended(self):
        """[(exit code, stdout, stderr)] of all, in their order; without what Gloo writes to stdout."""
        said = [process.communicate(timeout=SECONDS) for process in self.all]
        own = ["".join(line for line in stdout.splitlines(True) if not line.startswith("[Gloo]")) for stdout, _ in said]
        return [(process.returncode, stdout, stderr) for process, stdout, (_, stderr) in zip(self.all, own, said)]

    def interrupt(self, number):
        """SIGTERM to one of them."""
        self.all[number].send_signal(signal.SIGTERM)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.all:
            process.kill()
            process.communicate()


def run(*args, **keywords):
    """The ends of such a training, all of which must be good."""
    with Processes(*args, **keywords) as processes:
        ends = processes.ended()
    assert [code for code, _, _ in ends] == [0] * len(ends), [stderr[-2000:] for _, _, stderr in ends]
    return ends


def run_in_float64(directory, num_processes, devices, fields, *, program, compiled):
    """`run` with a network whose weights and arithmetic are float64."""
    run(
        directory, num_processes, devices, {"optimizer.decay_pattern": ".", **fields}, compiled=compiled,
        program=program._replace(script="tests/float64_network.py"), environment={"JAX_ENABLE_X64": "1", "PROGRAM": program.script},
    )
