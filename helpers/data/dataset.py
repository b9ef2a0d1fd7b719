"""A data set in memory: what every function of this package returns."""

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Provenance:
    """Where data come from: `str()` of it goes with every result."""

    name: str
    real: bool
    detail: str

    def __str__(self):
        return f"{'' if self.real else 'drawn stand-in for '}{self.name}, {self.detail}"


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 (N, C, H, W) and what is known of them: a tensor, or a dict of tensors, with first axis N."""

    images: torch.Tensor
    targets: torch.Tensor | dict[str, torch.Tensor]

    def __len__(self):
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split, the names of the classes, and where all this comes from."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    provenance: Provenance

    @property
    def mean(self):
        """Mean of each channel over the training images, float32 (C,), for pixels in [0, 1]."""
        return self._moments[0]

    @property
    def std(self):
        """Standard deviation of each channel over the training images, float32 (C,), for pixels in [0, 1]."""
        return self._moments[1]

    @cached_property
    def _moments(self):
        # a histogram per channel is exact, and needs no float copy of the images
        channels = self.train.images.shape[1]
        counts = torch.zeros(channels, 256, dtype=torch.float64)
        for chunk in self.train.images.split(1_000):
            for channel in range(channels):
                counts[channel] += torch.bincount(chunk[:, channel].flatten(), minlength=256)
        values = torch.arange(256, dtype=torch.float64) / 255
        frequency = counts / counts.sum(1, keepdim=True)
        mean = frequency @ values
        variance = (frequency * (values - mean[:, None]) ** 2).sum(1)
        return mean.float(), variance.sqrt().float()

    def normalize(self, images):
        """(pixels / 255 - mean) / std for uint8 images (N, C, H, W), as float32 on the images' device.

        Raises TypeError for another dtype, ValueError for another shape.
        """
        channels = len(self.mean)
        if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8:
            kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
            raise TypeError(
                f"normalize() takes a uint8 tensor of pixels from 0 to 255, not {kind}. "
                "Floats have been normalised already, or need (255 * x).round().to(torch.uint8) first."
            )
        if images.ndim != 4 or images.shape[1] != channels:
            hint = " One image needs a batch axis: image[None]." if images.ndim == 3 else ""
            raise ValueError(
                f"normalize() takes images of shape (N, {channels}, H, W), not {tuple(images.shape)}.{hint}"
            )
        mean, std = self._per_channel(images.device)
        return images.float().sub_(255 * mean).div_(255 * std)

    def denormalize(self, x):
        """The pixels in [0, 1] behind normalised images (N, C, H, W); what lies outside is clipped."""
        channels = len(self.mean)
        if x.ndim != 4 or x.shape[1] != channels or not x.is_floating_point():
            raise ValueError(
                f"denormalize() takes floats of shape (N, {channels}, H, W), not {x.dtype} of shape {tuple(x.shape)}."
            )
        mean, std = self._per_channel(x.device)
        return (x * std + mean).clamp(0, 1)

    def _per_channel(self, device):
        # a grey image without any contrast would divide by zero
        return self.mean.to(device)[:, None, None], self.std.clamp_min(1e-6).to(device)[:, None, None]
