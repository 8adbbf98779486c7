"""Measures HWA between two hosts against the model of `hwa_jax.analysis.communication`.

    sudo python benchmarks/communication_namespaces.py [--output=results/communication]

The hosts are two network namespaces of this machine, a core each, the link between them shaped to a bandwidth by tc's token
bucket, and with a relay to a latency. Two processes train on digits by the trainer's own step over `jax.distributed`; about five minutes.
"""

import argparse
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import timing
from hwa_jax.analysis.communication import Link, overhead, synchronization_seconds
from hwa_jax.report.tables import format_bytes, markdown_table
from hwa_jax.storage import atomic
from hwa_jax.training.environment import environment
from namespaces import ADDRESSES, Network, missing

PERIODS = (1, 10, 100)
LATENCIES, RATES = (0.0, 0.02, 0.05), (1e9, 1e8, 1e7)  # seconds, bits per second
# Congestion control, and whether it begins anew after a pause; on one link, without pauses and with pauses of a second.
TCP_SETTINGS = (("cubic", False), ("cubic", True), ("bbr", False))
TCP_RATE, TCP_LATENCY, PAUSES = 1e8, 0.05, (0.0, 1.0)
GOAL = 0.2
_NUM_HOSTS, _REPEATS, _REPEAT_SECONDS = 2, 5, 0.5
# Of 1514 bytes that a full frame takes on the link, TCP delivers 1448.
_PAYLOAD_SHARE = 1448 / 1514
# Gloo's receiver says that it is ready, then the sender sends.
_TRIPS = 2


class Hosts:
    """The two processes of a training, one in each namespace; a context manager.

    Attributes:
        payload: bytes of a synchronization.
    """

    def __init__(self, network: Network):
        self._network, self._processes = network, []

    def __enter__(self) -> "Hosts":
        program = pathlib.Path(__file__).with_name("communication_worker.py")
        try:
            for number in range(_NUM_HOSTS):
                command = self._network.inside(number, [sys.executable, str(program), f"{ADDRESSES[0]}:40404", str(number)])
                # Two programs cannot share an accelerator.
                environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
                self._processes.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            self.payload = self._answers()[0]["bytes_per_synchronization"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def step_seconds(self, sync_period: int | None, expected: float, pause: float = 0.0) -> float:
        """Seconds per step with an average every H of them, None: without; the median over repeats.

        Args:
            expected: seconds that a step may take; how many are made follows from it.
            pause: seconds before each step, which do not count.
        """
        cycles = math.ceil(_REPEAT_SECONDS / (expected * (sync_period or 1)))
        told = json.dumps({"sync_period": sync_period, "cycles": cycles, "repeats": _REPEATS, "pause": pause})
        for process in self._processes:
            print(told, file=process.stdin, flush=True)
        # A step with an average lasts until the slower host has it.
        return statistics.median(max(pair) for pair in zip(*self._answers()))

    def _answers(self) -> list[Any]:
        return [json.loads(next(line for line in process.stdout if not line.startswith("[Gloo]"))) for process in self._processes]

    def __exit__(self, *_) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


def measure() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every cell with all up to it, and what their prediction is made of: bytes, plain step, and the link without a limit."""
    result = {"environment": environment(), "date": time.strftime("%Y-%m-%d"), "busy_cores_before": timing.busy_cores(), "cells": [], "tcp": []}
    for latency in LATENCIES:
        with Network(latency) as network, Hosts(network) as hosts:
            if not latency:
                plain = hosts.step_seconds(None, 1e-3)
                # Without a limit nothing is left of a synchronization but its two latencies, and the wait for the slower host.
                unlimited = {str(period): period * (hosts.step_seconds(period, 5e-3 / period + plain) - plain) for period in PERIODS}
                result |= {"bytes": hosts.payload, "plain_seconds": plain, "unlimited_seconds": unlimited}
            for rate in RATES:
                network.shape(rate)
                for period in PERIODS:
                    cell = _cell(rate, latency, period, result)
                    cell["measured_seconds"] = hosts.step_seconds(period, cell["predicted_seconds"])
                    result["cells"].append(cell)
                    yield cell, result
    for control, restarts in TCP_SETTINGS:
        with Network(TCP_LATENCY, control, restarts) as network, Hosts(network) as hosts:
            network.shape(TCP_RATE)
            for pause in PAUSES:
                cell = _cell(TCP_RATE, TCP_LATENCY, 1, result) | {"congestion_control": control, "restarts_after_pause": restarts, "pause_seconds": pause}
                cell["measured_seconds"] = hosts.step_seconds(1, cell["predicted_seconds"], pause)
                result["tcp"].append(cell)
                yield cell, result


def _cell(rate, latency, period, facts):
    cell = {"bits_per_second": rate, "relay_seconds": latency, "sync_period": period}
    return cell | prediction(cell, facts)


def prediction(cell: dict[str, Any], facts: dict[str, Any]) -> dict[str, float]:
    """Seconds of a step, averages included, by the model of a ring."""
    latency = facts["unlimited_seconds"][str(cell["sync_period"])] / 2
    link = Link(_PAYLOAD_SHARE * cell["bits_per_second"] / 8, latency + _TRIPS * cell["relay_seconds"])
    synchronization = synchronization_seconds(facts["bytes"], _NUM_HOSTS, link)
    plain = facts["plain_seconds"]
    return {"predicted_seconds": plain * (1 + overhead(synchronization, plain, cell["sync_period"]))}


def line(cell: dict[str, Any]) -> str:
    """A cell in words."""
    link = f"{cell['bits_per_second'] / 1e6:g} Mbit/s, {1e3 * cell['relay_seconds']:g} ms"
    settings = f", {', '.join(_settings(cell))}" if "congestion_control" in cell else ""
    return f"{link}{settings}, H = {cell['sync_period']}: {1e3 * cell['measured_seconds']:.2f} ms a step"


def report(result: dict[str, Any]) -> str:
    """The table in markdown, and how it was obtained."""
    machine, cells = result["environment"], result["cells"]
    unlimited = ", ".join(f"{1e3 * seconds:.2f} (H = {period})" for period, seconds in result["unlimited_seconds"].items())
    within = sum(abs(_ratio(cell) - 1) <= GOAL for cell in cells)
    return "\n\n".join([
        "# Communication, measured and predicted",
        f"HWA between two hosts: LeNet-300-100 on digits, {format_bytes(result['bytes'])} to average, batch 50, K = 2. The hosts are two network namespaces "
        "of one machine, a core each; their link was shaped in both directions by tc's token bucket, which holds 0.1 ms or two frames. The step without averages took "
        f"{1e3 * result['plain_seconds']:.2f} ms, and on the link without a limit an average took {unlimited} ms, the wait for the slower host included. The prediction is made "
        "of these, the bytes and the bandwidth (less TCP's headers, 1448 of 1514 bytes) by the ring of `hwa_jax.analysis.communication`. "
        "Rows with a latency passed through a relay, a program that delays every packet by so much in each direction. Each of the ring's two "
        "rounds is predicted to wait for it twice, since Gloo's receiver tells the sender that it is ready; that was put in after 20 ms had been measured, and before 50 ms. "
        "The bucket's size, and the average on the link without a limit at every H, were chosen after a first table: a bucket of 16 kB fills during a latency, and lets as much pass unshaped. "
        "TCP's congestion control is CUBIC, with `net.ipv4.tcp_slow_start_after_idle=0`; the second table has what others cost.",
        f"Predicted within {GOAL:.0%} of the measured step: {within} of {len(cells)} rows.",
        markdown_table(
            ["bandwidth", "latency added", "H", "step measured, ms", "step predicted, ms", "predicted / measured", "overhead measured", "overhead predicted"],
            [_row(cell, result["plain_seconds"]) for cell in cells], "rrrrrrrr",
        ),
        "## What TCP's settings cost",
        f"One link, {TCP_RATE / 1e6:g} Mbit/s with {1e3 * TCP_LATENCY:g} ms added, and an average in every step; with a pause before each, which is not counted, for the "
        "steps between two averages. The model knows nothing of TCP; the first two rows are its settings in the table above.",
        markdown_table(
            ["congestion control", "`tcp_slow_start_after_idle`", "pause", "step measured, ms", "step predicted, ms", "predicted / measured"],
            [[*_settings(cell), *_steps(cell)] for cell in result["tcp"]], "lrrrrr",
        ),
        f"Written by `python benchmarks/communication_namespaces.py` on {result['date']}: {machine['cpu_model']}, {machine['cpu_cores']} cores, jax {machine['jax']}, "
        f"Python {machine['python']}; Gloo's all-reduce. Medians of {_REPEATS}. Busy cores before: {result['busy_cores_before']:g}. "
        f"Commit: {machine['git_commit'] or 'not run from a checkout'}.",
    ]) + "\n"


def _row(cell, plain) -> Sequence[str]:
    return [
        f"{cell['bits_per_second'] / 1e6:g} Mbit/s", f"{1e3 * cell['relay_seconds']:g} ms", str(cell["sync_period"]), *_steps(cell),
        *(f"{100 * (cell[name] / plain - 1):,.0f} %" for name in ("measured_seconds", "predicted_seconds")),
    ]


def _settings(cell):
    return [cell["congestion_control"], str(int(cell["restarts_after_pause"])), f"{cell['pause_seconds']:g} s"]


def _steps(cell):
    return [*(f"{1e3 * cell[name]:.2f}" for name in ("measured_seconds", "predicted_seconds")), f"{_ratio(cell):.2f}"]


def _ratio(cell):
    return cell["predicted_seconds"] / cell["measured_seconds"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("results/communication"))
    options = parser.parse_args()
    reason = missing()
    if reason:
        print(f"not run: {reason}")
        return 0
    # Namespaces and processes are removed where this one is ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    options.output.mkdir(parents=True, exist_ok=True)
    for cell, result in measure():
        print(line(cell), flush=True)
        atomic.write_json(options.output / "results.json", result)
        (options.output / "report.md").write_text(report(result))
    print(options.output / "report.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
