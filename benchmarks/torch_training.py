"""What both trainings in PyTorch share: data on the device, augmentation, an epoch, evaluation."""

import torch
from torch.nn import functional

import torch_models
from torch_step import DEVICE


class Data:
    """Splits on the device, uint8 [n, channels, height, width]; batches are cut, augmented and normalized as ours.

    Args:
        dataset: a `hwa_jax.data.Dataset`.
        config: of the training.
    """

    def __init__(self, dataset, config):
        self.config, self.num_classes, self.image_shape = config, dataset.num_classes, dataset.train.image_shape
        self.mean, self.std = (
            torch.tensor(values, device=DEVICE).view(1, -1, 1, 1) for values in (dataset.mean, dataset.std)
        )
        self.splits = {name: on_device(getattr(dataset, name)) for name in ("train", "validation", "test")}
        images, labels = self.splits["train"]
        number = config.evaluation.train_examples
        self.splits["train_sample"] = images[:number], labels[:number]

    def network(self):
        """The configuration's network, on the device."""
        network = torch_models.create(str(self.config.model.name), num_classes=self.num_classes, image_shape=self.image_shape)
        return network.to(DEVICE, memory_format=torch.channels_last)

    def optimizer(self, network):
        """The configuration's SGD."""
        optimizer = self.config.optimizer
        return torch.optim.SGD(
            network.parameters(), optimizer.learning_rate, optimizer.momentum, nesterov=optimizer.nesterov, fused=True
        )

    def batches(self):
        """Augmented batches of one epoch in random order."""
        images, labels = self.splits["train"]
        size = self.config.training.batch_size
        order = torch.randperm(len(labels), device=DEVICE)
        for chosen in order[: len(order) // size * size].view(-1, size):
            yield self._normalized(self._augmented(images[chosen])), labels[chosen]

    def evaluate(self, network, split):
        """Accuracy and mean negative log-likelihood."""
        images, labels = self.splits[split]
        size, correct, nll = self.config.evaluation.batch_size, 0, 0.0
        network.eval()
        with torch.inference_mode():
            for some, truth in zip(images.split(size), labels.split(size)):
                logits = network(self._normalized(some))
                nll += functional.cross_entropy(logits, truth, reduction="sum").item()
                correct += (logits.argmax(1) == truth).sum().item()
        network.train()
        return {"accuracy": correct / len(labels), "nll": nll / len(labels)}

    def _augmented(self, images):
        padding = self.config.data.crop_padding
        number, _, height, width = images.shape
        padded = functional.pad(images, (padding,) * 4)
        rows, columns = (
            torch.randint(2 * padding + 1, (number, 1), device=DEVICE) + torch.arange(size, device=DEVICE) for size in (height, width)
        )
        flipped = torch.rand(number, 1, device=DEVICE) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
        every = torch.arange(number, device=DEVICE)[:, None, None]
        return padded[every, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def _normalized(self, images):
        scaled = (images.float() / 255 - self.mean) / self.std
        return scaled.contiguous(memory_format=torch.channels_last)


def step(network, optimizer, images, labels):
    """One step of one network."""
    optimizer.zero_grad(set_to_none=True)
    functional.cross_entropy(network(images), labels).backward()
    optimizer.step()


@torch.no_grad()
def set_to_mean(target, networks):
    """Gives a network the mean of others' parameters and buffers."""
    for own, *others in zip(*(network.state_dict().values() for network in (target, *networks))):
        own.copy_(torch.stack(others).mean(0) if own.is_floating_point() else others[0])


def on_device(split):
    """A `hwa_jax.data.Split` as images and labels on the device."""
    images = torch.tensor(split.images, device=DEVICE).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last), torch.tensor(split.labels, device=DEVICE).long()
