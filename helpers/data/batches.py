"""CIFAR-10 as published: five training batches and a test batch, pickled. torchvision checks their md5 first."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.data.pictures import hidden


@dataclass(frozen=True)
class Batches:
    """The folder `cifar-10-batches-py/`, also inside `cifar10/`."""

    folder: Path
    layout = "official batches"
    place = "cifar-10-batches-py"

    @classmethod
    def find(cls, root):
        places = (root / cls.place, root / "cifar10" / cls.place)
        return next((cls(folder) for folder in places if folder.is_dir()), None)

    def files(self):
        return [path for path in self.folder.iterdir() if path.is_file() and not hidden(path)]

    def counts(self):
        """Numbers of training and test images. Raises ValueError unless every file has the published md5."""
        from torchvision.datasets import CIFAR10
        from torchvision.datasets.utils import check_integrity

        meta = CIFAR10.meta["filename"], CIFAR10.meta["md5"]
        for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, meta]:
            if not check_integrity(self.folder / name, md5):
                raise ValueError(self._complaint())
        return 50_000, 10_000

    def read(self):
        """{"train": (images uint8 (N, 3, 32, 32), labels int64 (N,)), "test": ...} in the official order."""
        from torchvision.datasets import CIFAR10

        splits = {}
        for split in ("train", "test"):
            try:
                official = CIFAR10(self.folder.parent, train=split == "train", download=False)
            except RuntimeError as error:
                raise ValueError(self._complaint()) from error
            images = np.ascontiguousarray(official.data.transpose(0, 3, 1, 2))
            splits[split] = images, np.array(official.targets)
        return splits

    def _complaint(self):
        return (
            "CIFAR-10: cifar-10-batches-py is incomplete, or its bytes are not the published ones. "
            "Delete that folder (`./course data` says where it is) and fetch it again."
        )
