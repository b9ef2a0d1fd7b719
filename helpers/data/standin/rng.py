"""Random numbers that are a pure function of seed, stream, image and position in the stream.

A generator that hands out one sequence would make image 7 depend on how many images were drawn before it in
the same call. Here every image has a key of its own and every number is a hash of (key, counter), so image *i* is
the same in a batch of 1 and in a data set of 50,000. Only integer arithmetic and exact multiplications lie between
the hash and the number, hence the same bits with every numpy.
"""

import math
import zlib

import numpy as np


def splitmix64(x):
    """Hash of an array of uint64, element by element, modulo 2**64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hash_of(name):
    return np.uint64(zlib.crc32(name.encode()))


class Random:
    """One stream of random numbers per image.

    seed: integer >= 0; stream: a name such as `"cifar10/train"`; index: (N,) numbers of the images.
    Every method returns one value per image: an array of shape `(N, *shape)`, where `shape` is chosen by the
    caller so that the values broadcast, for instance `(1, 1, 3)` for a colour over pixels.
    """

    def __init__(self, seed, stream, index):
        key = splitmix64(splitmix64(np.array([seed], np.uint64)) ^ _hash_of(stream))
        self._key = splitmix64(key ^ splitmix64(np.asarray(index, np.uint64)))
        self._drawn = 0

    def __len__(self):
        return len(self._key)

    def fork(self, name, rows=slice(None)):
        """An independent stream for a part of the picture, for all images or for those in `rows` only.

        A part that only some images have costs nothing for the others, and shifts no other part's numbers.
        """
        child = object.__new__(Random)
        child._key = splitmix64(self._key[rows] ^ _hash_of(name))
        child._drawn = 0
        return child

    def _bits(self, shape):
        """24 random bits per value, as uint64 (N, *shape)."""
        count = math.prod(shape)
        counter = np.arange(self._drawn, self._drawn + count, dtype=np.uint64)
        self._drawn += count
        bits = splitmix64(self._key[:, None] ^ splitmix64(counter)) >> np.uint64(40)
        return bits.reshape(-1, *shape)

    def uniform(self, low=0.0, high=1.0, shape=()):
        """float32 in [low, high)."""
        return low + (high - low) * (self._bits(shape).astype(np.float32) * np.float32(2**-24))

    def normal(self, sigma, shape=()):
        """Nearly normal float32: the sum of four uniform numbers, so never beyond 3.5 sigma."""
        total = self._bits((*shape, 4)).astype(np.float32).sum(-1) * np.float32(2**-24)
        return (total - 2) * np.float32(math.sqrt(3) * sigma)

    def chance(self, probability, shape=()):
        """bool, true with this probability."""
        return self.uniform(shape=shape) < probability

    def integers(self, count, shape=()):
        """int64 in 0 ... count-1; `count` is a number or one number per image."""
        return ((self._bits(shape) * np.asarray(count, np.uint64)) >> np.uint64(24)).astype(np.int64)
