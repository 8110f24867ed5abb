"""ResNet with bottlenecks as torchvision has it (version 1.5), once in torch and once in linen."""

import flax.linen as nn
import jax.numpy as jnp
import torch

from bnjax.linen import BatchNorm

# torch's names of layers -> the names below.
RENAME = [(r"layer(\d)\.(\d)", r"layer\1_\2"), (r"downsample\.(\d)", r"downsample_\1")]


class TorchBottleneck(torch.nn.Module):
    def __init__(self, inside, planes, stride):
        super().__init__()
        conv, norm = torch.nn.Conv2d, torch.nn.BatchNorm2d
        self.conv1, self.bn1 = conv(inside, planes, 1, bias=False), norm(planes)
        self.conv2 = conv(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = norm(planes)
        self.conv3, self.bn3 = conv(planes, 4 * planes, 1, bias=False), norm(4 * planes)
        self.downsample = None
        if stride != 1 or inside != 4 * planes:
            shortcut = conv(inside, 4 * planes, 1, stride, bias=False), norm(4 * planes)
            self.downsample = torch.nn.Sequential(*shortcut)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchResNet(torch.nn.Module):
    def __init__(self, blocks=(3, 4, 6, 3), width=64, classes=1000):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        inside = width
        for stage, number in enumerate(blocks):
            planes, layers = width * 2**stage, []
            for block in range(number):
                layers.append(TorchBottleneck(inside, planes, 2 if stage and not block else 1))
                inside = 4 * planes
            self.add_module(f"layer{stage + 1}", torch.nn.Sequential(*layers))
        self.stages = len(blocks)
        self.fc = torch.nn.Linear(inside, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


def _conv(features, size, stride, name):
    padding = [(size // 2, size // 2)] * 2
    return nn.Conv(features, (size, size), stride, padding, use_bias=False, name=name)


def _norm(train, name):
    return BatchNorm(use_running_average=not train, momentum=0.9, ddof=1, name=name)


class Bottleneck(nn.Module):
    planes: int
    stride: int
    project: bool

    @nn.compact
    def __call__(self, x, train):
        y = nn.relu(_norm(train, "bn1")(_conv(self.planes, 1, 1, "conv1")(x)))
        y = nn.relu(_norm(train, "bn2")(_conv(self.planes, 3, self.stride, "conv2")(y)))
        y = _norm(train, "bn3")(_conv(4 * self.planes, 1, 1, "conv3")(y))
        if self.project:
            x = _conv(4 * self.planes, 1, self.stride, "downsample_0")(x)
            x = _norm(train, "downsample_1")(x)
        return nn.relu(y + x)


class ResNet(nn.Module):
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    classes: int = 1000

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(_norm(train, "bn1")(_conv(self.width, 7, 2, "conv1")(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
        for stage, number in enumerate(self.blocks):
            for block in range(number):
                stride, name = 2 if stage and not block else 1, f"layer{stage + 1}_{block}"
                x = Bottleneck(self.width * 2**stage, stride, block == 0, name=name)(x, train)
        return nn.Dense(self.classes, name="fc")(jnp.mean(x, (1, 2)))
