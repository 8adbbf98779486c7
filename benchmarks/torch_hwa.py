"""HWA in PyTorch, as one would write it: the epochs that `epochs.py` measures ours against."""

import collections
import os
import tempfile
import time

import torch

from torch_training import Data, set_to_mean, step


def seconds_per_epoch(config, setup, num_epochs):
    """Trains K networks by HWA and returns the seconds of each epoch.

    Args:
        config: of the training; BatchNorm statistics are not recalibrated, CNN-S has none.
        setup: ours, for its data set.
        num_epochs: H is one epoch.
    """
    data = Data(setup.dataset, config)
    networks = [data.network() for _ in range(config.hwa.num_replicas)]
    optimizers = [data.optimizer(network) for network in networks]
    outer, average = data.network(), data.network()
    set_to_mean(outer, networks[:1])
    for network in networks:
        network.load_state_dict(outer.state_dict())
    window = collections.deque(maxlen=config.hwa.window_size)
    seconds = []
    with tempfile.TemporaryDirectory() as directory:
        for epoch in range(num_epochs):
            start = time.perf_counter()
            for network, optimizer in zip(networks, optimizers):
                for images, labels in data.batches():
                    step(network, optimizer, images, labels)
            for network in networks:
                _evaluate(data, network)
            set_to_mean(outer, networks)
            for network in networks:
                network.load_state_dict(outer.state_dict())
            window.append({name: leaf.cpu().clone() for name, leaf in outer.state_dict().items()})
            torch.save(window[-1], os.path.join(directory, f"member_{epoch % window.maxlen}.pt"))
            average.load_state_dict({
                name: torch.stack([member[name] for member in window]).double().mean(0).float() for name in window[-1]
            })
            for network in (outer, average):
                _evaluate(data, network)
            state = [(network.state_dict(), optimizer.state_dict()) for network, optimizer in zip(networks, optimizers)]
            torch.save(state, os.path.join(directory, f"checkpoint_{epoch % config.checkpoint.keep}.pt"))
            seconds.append(time.perf_counter() - start)
    return seconds


def _evaluate(data, network):
    for split in ("validation", "train_sample"):
        data.evaluate(network, split)
