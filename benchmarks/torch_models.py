"""The networks of hwa_jax.models in PyTorch: the same layers, channels and numbers of parameters."""

import torch
from torch import nn
from torch.nn import functional


def create(name: str, *, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """The network called `name` in training mode; image_shape is (height, width, channels).

    It maps float images [b, channels, height, width] to logits [b, num_classes].
    """
    height, width, channels = image_shape
    if name == "mlp":
        return _mlp(height * width * channels, num_classes)
    if name == "cnn_s":
        return _cnn((16, 32, 64), channels, (-(-height // 8)) * (-(-width // 8)), num_classes)
    if name == "vgg16":
        return _vgg(channels, num_classes)
    if name == "resnet20":
        return ResNet(3, channels, num_classes)
    _, depth, width_factor = name.split("-")
    return WideResNet((int(depth) - 4) // 6, int(width_factor), channels, num_classes)


def _mlp(features, num_classes):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(features, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, num_classes)
    )


def _cnn(widths, channels, num_pixels, num_classes):
    layers = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * num_pixels, num_classes))


def _vgg(channels, num_classes):
    layers = []
    for width, number in zip((64, 128, 256, 512, 512), (2, 2, 3, 3, 3)):
        for _ in range(number):
            layers += [_conv(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def _conv(channels_in, channels_out, window, stride=1):
    return nn.Conv2d(channels_in, channels_out, window, stride=stride, padding=window // 2, bias=False)


class BasicBlock(nn.Module):
    """relu(branch(x) + shortcut(x)); where shapes differ the shortcut strides and appends zeros (option A)."""

    def __init__(self, channels_in, channels_out, stride):
        super().__init__()
        self.conv1, self.norm1 = _conv(channels_in, channels_out, 3, stride), nn.BatchNorm2d(channels_out)
        self.conv2, self.norm2 = _conv(channels_out, channels_out, 3), nn.BatchNorm2d(channels_out)
        self.stride, self.padding = stride, channels_out - channels_in

    def forward(self, x):
        branch = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        if self.padding:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding))
        return functional.relu(branch + x)


class ResNet(nn.Module):
    """The CIFAR ResNet of 6n + 2 layers for n blocks per group."""

    def __init__(self, blocks_per_group, channels, num_classes):
        super().__init__()
        self.stem, self.norm = _conv(channels, 16, 3), nn.BatchNorm2d(16)
        blocks, channels = [], 16
        for width in (16, 32, 64):
            for index in range(blocks_per_group):
                blocks.append(BasicBlock(channels, width, 2 if width > 16 and index == 0 else 1))
                channels = width
        self.blocks, self.classifier = nn.Sequential(*blocks), nn.Linear(channels, num_classes)

    def forward(self, x):
        x = self.blocks(functional.relu(self.norm(self.stem(x))))
        return self.classifier(x.mean((2, 3)))


class PreactivationBlock(nn.Module):
    """norm, relu, 3x3, norm, relu, 3x3, plus shortcut; a 1x1 convolution of the activated input where shapes differ."""

    def __init__(self, channels_in, channels_out, stride):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels_in), _conv(channels_in, channels_out, 3, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(channels_out), _conv(channels_out, channels_out, 3)
        self.shortcut = _conv(channels_in, channels_out, 1, stride) if channels_in != channels_out or stride > 1 else None

    def forward(self, x):
        activated = functional.relu(self.norm1(x))
        branch = self.conv2(functional.relu(self.norm2(self.conv1(activated))))
        return branch + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """WRN-d-k with n blocks per group, d = 6n + 4."""

    def __init__(self, blocks_per_group, width_factor, channels, num_classes):
        super().__init__()
        self.stem = _conv(channels, 16, 3)
        blocks, channels = [], 16
        for group in range(3):
            width = 16 * 2**group * width_factor
            for index in range(blocks_per_group):
                blocks.append(PreactivationBlock(channels, width, 2 if group and index == 0 else 1))
                channels = width
        self.blocks, self.norm = nn.Sequential(*blocks), nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = functional.relu(self.norm(self.blocks(self.stem(x))))
        return self.classifier(x.mean((2, 3)))
