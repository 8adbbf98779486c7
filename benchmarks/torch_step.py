"""One training step of N networks in PyTorch, in three ways; each is a side for `timing.compare`."""

import torch
from torch import func
from torch.nn import functional

import torch_models
from jax_step import LEARNING_RATE, MODELS, MOMENTUM, NUM_CLASSES

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.set_float32_matmul_precision("high")  # TF32 on a GPU, JAX's default there; nothing on a CPU
torch.backends.cudnn.benchmark = True
torch._dynamo.config.recompile_limit = 64  # a network each may be a program each


class InTurn:
    """N networks one after another: channels_last, fused SGD; compiled if asked."""

    def __init__(self, model: str, num_particles: int, *, compiled: bool = False):
        self._networks = [_network(model) for _ in range(num_particles)]
        self._optimizers = [
            torch.optim.SGD(network.parameters(), LEARNING_RATE, MOMENTUM, fused=True) for network in self._networks
        ]
        self._batches = [_batch(model) for _ in range(num_particles)]
        if compiled:
            mode = "reduce-overhead" if DEVICE.type == "cuda" else "default"
            self._networks = [torch.compile(network, mode=mode) for network in self._networks]

    def __call__(self, calls: int) -> None:
        """Makes so many steps of all networks."""
        for _ in range(calls):
            for network, optimizer, (images, labels) in zip(self._networks, self._optimizers, self._batches):
                optimizer.zero_grad(set_to_none=True)
                functional.cross_entropy(network(images), labels).backward()
                optimizer.step()
        _wait()


class Vmapped:
    """N networks at once: stacked parameters under torch.func.vmap."""

    def __init__(self, model: str, num_particles: int):
        networks = [_network(model) for _ in range(num_particles)]
        stacked = func.stack_module_state(networks)
        self._params, self._buffers = ({name: leaf.detach() for name, leaf in tree.items()} for tree in stacked)
        self._momentum = [torch.zeros_like(leaf) for leaf in self._params.values()]
        batches = [_batch(model) for _ in range(num_particles)]
        self._images, self._labels = (torch.stack(parts) for parts in zip(*batches))

        def loss(params, buffers, images, labels):
            return functional.cross_entropy(func.functional_call(networks[0], (params, buffers), images), labels)

        self._gradients = func.vmap(func.grad(loss))

    def __call__(self, calls: int) -> None:
        """Makes so many steps of all networks."""
        for _ in range(calls):
            gradients = self._gradients(self._params, self._buffers, self._images, self._labels)
            torch._foreach_mul_(self._momentum, MOMENTUM)
            torch._foreach_add_(self._momentum, [gradients[name] for name in self._params])
            torch._foreach_add_(list(self._params.values()), self._momentum, alpha=-LEARNING_RATE)
        _wait()


SIDES = {
    "torch eager": InTurn,
    "torch.compile": lambda model, num_particles: InTurn(model, num_particles, compiled=True),
    "torch.func.vmap": Vmapped,
}


def _network(model):
    network = torch_models.create(model, num_classes=NUM_CLASSES, image_shape=MODELS[model][0])
    return network.to(DEVICE, memory_format=torch.channels_last)


def _batch(model):
    (height, width, channels), batch_size = MODELS[model]
    images = torch.randn(batch_size, channels, height, width, device=DEVICE)
    labels = torch.randint(NUM_CLASSES, (batch_size,), device=DEVICE)
    return images.to(memory_format=torch.channels_last), labels


def _wait():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
