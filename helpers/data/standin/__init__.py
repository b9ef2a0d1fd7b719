"""Drawn stand-ins for CIFAR-10 and PASCAL VOC: their shapes and class names, no download, the same on every machine.

Sprites from open emoji sets (THIRD_PARTY.md) are warped, recoloured and lit in front of random scenery. They are for
learning and testing: what a network learns here does not transfer to photographs, and no number measured here
belongs beside one from a paper.
"""

from .draw import cifar10
from .layouts import write_cifar10, write_voc
from .scenes import voc_animals
from .sprites import STYLES, credits

__all__ = [
    "STYLES",
    "cifar10",
    "credits",
    "voc_animals",
    "write_cifar10",
    "write_voc",
]
