"""The networks of the benchmarks, and the two loops that `helpers.train.fit` is compared with.

Both loops take the settings that `fit` takes on this machine: the same batch size, optimiser and number format. What
differs is what they do per batch, and, in the usual loop, the memory format: channels-last is rarely asked for, so it
runs with PyTorch's default and once more with channels-last.
"""

import time
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from helpers import train
from helpers.chapters import chapter
from helpers.muon import is_convolution

BATCH = 128


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        return (self.body(x) + self.shortcut(x)).relu()


def resnet8(seed=0):
    """A residual network for 32x32 images: one block each of 16, 32 and 64 channels, 77,850 parameters."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).to(memory_format=torch.channels_last)  # fmt: skip


def vgg_d():
    """The network that chapter 1 trains on the page."""
    vgg = chapter("01_vgg")
    return vgg.small_vgg(vgg.SMALL["D"])


def vgg_d_at_16():
    """The same for images of half the side."""
    vgg = chapter("01_vgg")
    return vgg.VGG(vgg.SMALL["D"], classes=10, hidden=128, size=16, dropout=0, batch_norm=True)


def resnet20():
    """The network of chapter 2's comparisons, which see images of 16x16 pixels."""
    return chapter("02_resnet").CifarResNet(20, width=8)


def halved(data):
    """The images at 16x16 pixels, as in chapter 2."""
    return chapter("02_resnet").at_16_pixels(data)


class Step:
    """Forward, backward and update on one batch of normalised images."""

    def __init__(self, model, autocast, lr=0.1):
        self.model, self.autocast = model.train(), autocast
        self.optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def __call__(self, images, labels):
        with torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext():
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def bare(data, steps, autocast):
    """Images per second when the batches lie in memory, normalised: nothing but forward, backward and step."""
    images = data.normalize(data.train.images[: 8 * BATCH]).contiguous(memory_format=torch.channels_last)
    batches = list(zip(images.split(BATCH), data.train.targets[: 8 * BATCH].split(BATCH), strict=True))
    step = Step(resnet8(), autocast)
    step(*batches[0])
    start = time.perf_counter()
    for i in range(steps):
        step(*batches[i % len(batches)])
    return steps * BATCH / (time.perf_counter() - start)


def ours(data, steps, autocast):
    """Images per second of `fit`, augmentation included."""
    split = type(data.train)(data.train.images[: steps * BATCH], data.train.targets[: steps * BATCH])
    part = type(data)(split, data.test, data.classes, data.provenance)
    part.__dict__["_moments"] = data.mean, data.std  # known already, and not what is timed
    nothing = lambda model, data: {}  # noqa: E731
    history = train.fit(resnet8(), part, epochs=1, batch_size=BATCH, autocast=autocast, evaluate=nothing)
    return history.images_per_second


class OneByOne(torch.utils.data.Dataset):
    """Training images as PIL pictures, transformed one at a time, as in most tutorials."""

    def __init__(self, data):
        self.images = data.train.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = data.train.targets.tolist()
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(data.mean.tolist(), data.std.tolist()),
            ]
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.targets[index]


def loader(data):
    """Batches of `OneByOne`, shuffled, from two worker processes."""
    return torch.utils.data.DataLoader(
        OneByOne(data), BATCH, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True
    )


def batches(data, memory_format):
    """Batches without end."""
    endless = loader(data)
    while True:
        for images, labels in endless:
            yield images.contiguous(memory_format=memory_format), labels


def usual(data, steps, autocast, memory_format=torch.contiguous_format):
    """Images per second of the usual loop, from its second batch on: starting the workers is not counted."""
    step, stream = Step(resnet8().to(memory_format=memory_format), autocast), batches(data, memory_format)
    step(*next(stream))
    start = time.perf_counter()
    for _ in range(steps):
        step(*next(stream))
    seconds = time.perf_counter() - start
    stream.close()
    return steps * BATCH / seconds


def usual_channels_last(data, steps, autocast):
    """The same with the memory format that `fit` uses."""
    return usual(data, steps, autocast, torch.channels_last)


def usual_accuracies(build, data, moments, lr, autocast, seed=0):
    """Test accuracy of the usual loop with a constant learning rate after each of `moments`, in seconds of training."""
    torch.manual_seed(seed)
    model = build()
    step, stream = Step(model, autocast, lr), batches(data, torch.contiguous_format)
    trained, found = 0.0, []
    for moment in moments:
        start = time.perf_counter() - trained
        while trained < moment:
            step(*next(stream))
            trained = time.perf_counter() - start
        found.append(train.evaluate(model, data)["test_accuracy"])
    stream.close()
    return found


def milliseconds_of_an_update(optimizer, model, shaped=lambda p: p, steps=10):
    """Processor time of `optimizer(parameters).step()` for the convolutions of `model`, gradients random.

    shaped: what the optimiser takes instead of a filter bank (out, in, k, k).
    """
    parameters = [nn.Parameter(shaped(p.detach()).clone()) for p in model.parameters() if is_convolution(p)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimizer = optimizer(parameters)
    optimizer.step()
    start = time.process_time()
    for _ in range(steps):
        optimizer.step()
    return 1000 * (time.process_time() - start) / steps
