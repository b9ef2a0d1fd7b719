"""The course's data: CIFAR-10, the animals of PASCAL VOC 2012, and the cells of ISBI 2012, as tensors in memory.

    from helpers.data import cifar10
    data = cifar10()
    data.train.images, data.train.targets     # uint8 (50000, 3, 32, 32), int64 (50000,)
    data.normalize(data.train.images[:64])    # float32, what a network takes

Where the data come from is decided by `COURSE_SOURCE` (see `helpers.settings`): `auto` takes real data that are on
this machine, in the folder `COURSE_DATA` or from an earlier download, and else draws a stand-in and says so; `real`
downloads what is missing; `standin` always draws. `data.provenance` says which it was and belongs on every result.

| data set    | in the folder                                                                         |
|-------------|---------------------------------------------------------------------------------------|
| CIFAR-10    | `cifar-10-batches-py/` (official, also inside `cifar10/`), read by torchvision        |
| CIFAR-10    | `cifar10/{train,test}/airplane.webp` ...: one lossless sheet of 32x32 tiles per class |
| VOC-animals | `VOCdevkit/VOC2012/` (official)                                                       |
| ISBI 2012   | `isbi2012/{image,label}/NN.png`                                                       |

    ./course data                    # what is here
    ./course data fetch cifar10      # download
    ./course data pack FOLDER        # a folder to carry to a machine without a network
"""

from helpers.data.cifar10 import cifar10
from helpers.data.classes import CIFAR10_CLASSES, VOC_ANIMALS
from helpers.data.commands import fetch, find, status
from helpers.data.dataset import Dataset, Provenance, Split
from helpers.data.isbi2012 import isbi2012
from helpers.data.named import NAMED_CLASSES, named_pictures
from helpers.data.pack import pack
from helpers.data.voc import clear_examples, largest_animal, voc_animals, with_masks

__all__ = [
    "CIFAR10_CLASSES",
    "NAMED_CLASSES",
    "VOC_ANIMALS",
    "Dataset",
    "Provenance",
    "Split",
    "cifar10",
    "clear_examples",
    "fetch",
    "find",
    "isbi2012",
    "largest_animal",
    "named_pictures",
    "pack",
    "status",
    "voc_animals",
    "with_masks",
]
