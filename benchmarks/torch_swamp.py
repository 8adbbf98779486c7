"""SWAMP in PyTorch, as one would write it: the cycles that `epochs.py` measures ours against."""

import os
import tempfile
import time

import jax
import numpy as np
import torch

from torch_training import Data, on_device, set_to_mean, step


def seconds_per_cycle(config, setup, num_cycles):
    """Prunes in cycles of N networks and returns the seconds of each; all cycles start from one ticket.

    Args:
        config: of the training; CNN-S has no BatchNorm statistics to recalibrate.
        setup: ours, for its data, lengths and schedule.
        num_cycles: how many.
    """
    data = Data(setup.dataset, config)
    data.splits["held_out"] = on_device(jax.device_get(setup.held_out))
    periods = setup.periods
    rates = np.asarray(jax.vmap(setup.schedule)(np.arange(periods.ticket, periods.total))).tolist()
    ticket, average, mask = data.network(), data.network(), None
    seconds = []
    with tempfile.TemporaryDirectory() as directory:
        for cycle in range(num_cycles):
            start = time.perf_counter()
            networks, averages = zip(*(_train(data, ticket, mask, rates, periods) for _ in range(config.swamp.num_particles)))
            set_to_mean(average, averages)
            for network in (average, *averages):
                data.evaluate(network, "held_out")
            for network in (average, *averages, *networks):
                for split in ("train_sample", "validation", "test"):
                    data.evaluate(network, split)
            found = [network.state_dict() for network in (average, *averages)]
            torch.save((found, mask), os.path.join(directory, f"cycle_{cycle}.pt"))
            mask = _pruned(average, mask, config.swamp.fraction)
            seconds.append(time.perf_counter() - start)
    return seconds


def _train(data, ticket, mask, rates, periods):
    """One particle and its average over the last phase."""
    network, average = data.network(), data.network()
    network.load_state_dict(ticket.state_dict())
    optimizer = data.optimizer(network)
    sums, number, done = [torch.zeros_like(parameter) for parameter in network.parameters()], 0, 0
    _apply(mask, network)
    while done < len(rates):
        for images, labels in data.batches():
            optimizer.param_groups[0]["lr"] = rates[done]
            step(network, optimizer, images, labels)
            _apply(mask, network)
            done += 1
            if periods.is_collected(periods.ticket + done):
                torch._foreach_add_(sums, [parameter.detach() for parameter in network.parameters()])
                number += 1
    with torch.no_grad():
        for parameter, total in zip(average.parameters(), sums):
            parameter.copy_(total / number)
    return network, average


@torch.no_grad()
def _apply(mask, network):
    if mask is not None:
        torch._foreach_mul_(_kernels(network), mask)


@torch.no_grad()
def _pruned(network, mask, fraction):
    """The mask without the smallest `fraction` of the weights that remain, under one threshold."""
    kernels = _kernels(network)
    mask = mask or [torch.ones_like(kernel) for kernel in kernels]
    magnitudes = torch.cat([kernel.abs()[keep > 0] for kernel, keep in zip(kernels, mask)])
    threshold = magnitudes.kthvalue(round(fraction * len(magnitudes))).values
    return [keep * (kernel.abs() > threshold) for kernel, keep in zip(kernels, mask)]


def _kernels(network):
    return [parameter for parameter in network.parameters() if parameter.ndim > 1]
