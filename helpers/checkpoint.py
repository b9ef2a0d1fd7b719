"""Checkpoints: a training that is killed goes on where it was, and ends as if nothing had happened."""

import hashlib
import io
import os
import random
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

_present = ContextVar("checkpoints", default=None)


@contextmanager
def checkpoints(folder, every=60):
    """Within this block `fit` writes its whole state to `folder` every so many seconds of training, and at its end.

        with checkpoints(folder):
            set_seed(0)
            model = build()
            history = fit(model, data, epochs=100)

    When the same block runs again, a training that is finished gives its weights and its history at once, and one that
    was cut off goes on. Either way weights, history and random numbers are those of an uninterrupted run, to the bit on
    the same machine; only times differ.

    The trainings of a block are told apart by their order. What a checkpoint has to fit: the recipe, the first weights
    and the images; else `fit` raises ValueError. What it holds besides the training itself: the state of modules that
    are attributes of the recipe's loss, augmentation or evaluation. Other things that these change as they are called
    (a counter, an iterator) it does not know. A training within a training is not kept.
    """
    token = _present.set(_Folder(Path(folder), every))
    try:
        yield
    finally:
        _present.reset(token)


@contextmanager
def no_checkpoints():
    """Within this block trainings are not kept."""
    token = _present.set(None)
    try:
        yield
    finally:
        _present.reset(token)


def next_checkpoint():
    """The Checkpoint of the training that starts now, or None outside of `checkpoints`."""
    folder = _present.get()
    return folder and folder.next()


class _Folder:
    def __init__(self, path, every):
        self.path, self.every, self.count = path, every, 0

    def next(self):
        self.count += 1
        return Checkpoint(self.path / f"fit-{self.count:03}.checkpoint", self.every)


@dataclass
class Checkpoint:
    """The file of one training. It holds tensors and plain values, and their SHA-256 before them."""

    path: Path
    every: float

    def save(self, identity, state):
        """Write the file, whole or not at all. Where that fails (a full disk), say so and let the training go on."""
        buffer = io.BytesIO()
        torch.save({"identity": identity, "state": state}, buffer)
        body = buffer.getvalue()
        part = self.path.with_suffix(".part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                file.write(hashlib.sha256(body).digest() + body)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            print(f"The checkpoint {self.path.name} could not be written ({error}); the training goes on without it.")

    def load(self, identity):
        """The state that was saved, or None where there is none or the file is damaged.

        Raises ValueError when the file belongs to another training than `identity` (a dict of plain values) says.
        """
        if not self.path.exists():
            return None
        content = self.path.read_bytes()
        digest, body = content[:32], content[32:]
        if hashlib.sha256(body).digest() != digest:
            print(f"The checkpoint {self.path.name} is damaged, so this training starts over.")
            return None
        found = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        for name in identity | found["identity"]:
            there, here = found["identity"].get(name), identity.get(name)
            if there != here:
                raise ValueError(
                    f"{self.path} belongs to another training: {name} is {there!r} there and {here!r} here. "
                    "Give another folder, or delete the file to start over."
                )
        return found["state"]


def digest(tensors):
    """Sixteen hexadecimal digits that stand for a dict of tensors: names, types, shapes and every number."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


# ---------------------------------------------------------------------------------------------- random numbers


def random_state():
    """The state of the generators of Python, NumPy and PyTorch, as plain values."""
    kind, keys, *place = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *place),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state):
    """Put the generators into a state that `random_state` gave."""
    random.setstate(state["python"])
    kind, keys, *place = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *place))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
