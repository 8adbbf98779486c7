"""One of two processes that train by HWA; times steps as it is told: python communication_worker.py COORDINATOR PROCESS_ID.

Reads a JSON line {"sync_period": H, "cycles": of H steps, "repeats": n, "pause": seconds} from stdin, with "sync_period": null and cycles of 1 step for
training without averages, and answers with a JSON line of seconds per step, pauses not counted. The first answer is what it trains.
"""

import functools
import json
import os
import sys
import time

import jax

from hwa_jax.algorithms.hwa import communication
from hwa_jax.training import processes
from hwa_jax.training.config import default_config
from hwa_jax.training.setup import prepare

_NEVER = 10**9


class Training:
    """The trainer's compiled step, and the state that it goes on from.

    Args:
        sync_period: H, in steps.
    """

    def __init__(self, sync_period: int):
        config = default_config()
        config.data.name, config.model.name = "digits", "mlp"
        config.training.update({"batch_size": 50, "duration": "1000 steps"})
        config.hwa.update({"num_replicas": 2, "sync_period": f"{sync_period} steps"})
        self.setup = setup = prepare(config)
        self.state = setup.initial_state()
        batch_key, noise_key = setup.keys()
        self._shared = (setup.epoch_indices(self.state.step, batch_key), setup.train, noise_key, {})
        self._step = setup.step.lower(self.state, *self._shared).compile()

    def seconds(self, steps: int, pause: float = 0.0) -> float:
        """Of so many steps, both processes beginning together; the pauses before each are not counted."""
        processes.from_leader(lambda: None)
        start = time.perf_counter()
        for _ in range(steps):
            if pause:
                jax.block_until_ready(self.state)
                time.sleep(pause)
            self.state = self._step(self.state, *self._shared)
        jax.block_until_ready(self.state)
        return time.perf_counter() - start - steps * pause


def main(coordinator: str, process_id: int) -> None:
    # Two hosts would not share cores.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[process_id % len(cores)]})
    processes.join(coordinator, 2, process_id)
    training = functools.cache(Training)
    first = training(_NEVER)
    _say({"bytes_per_synchronization": communication(first.setup, first.state)["bytes_per_synchronization"]})
    for line in sys.stdin:
        told = json.loads(line)
        period = told["sync_period"]
        steps = told["cycles"] * (period or 1)
        trained = training(period or _NEVER)
        trained.seconds(period or 1)  # not counted: whatever happens only once
        _say([trained.seconds(steps, told["pause"]) / steps for _ in range(told["repeats"])])


def _say(answer):
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
