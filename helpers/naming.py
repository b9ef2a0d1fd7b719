"""One task for all classifiers of the course: name what is on a small picture.

Chapters 1 to 10 declare a trained network each, `Weights(chapter, NAMED, build=…, train=naming.learn,
data=naming.small_pictures, score=naming.logit_of, …)`, trained on the same pictures,
so that one photograph can be put to all of them.
"""

import torch
from torch import nn

from helpers import train
from helpers.data import NAMED_CLASSES as CLASSES
from helpers.data import VOC_ANIMALS, named_pictures
from helpers.inspect import count_parameters
from helpers.table import Table

NAMED = "named"
EPOCHS = 16
PLACES = torch.tensor([CLASSES.index(name) for name in VOC_ANIMALS])  # of an animal in CLASSES
CIFAR_TEST = 10_000  # the test split holds CIFAR-10's images first


def small_pictures():
    """`named_pictures` at CIFAR-10's own size, 32 px: a Dataset."""
    return named_pictures(side=32)


def scores(model, data):
    """Accuracies on CIFAR-10's test images and on the animals of VOC's validation photographs, as a dict."""
    right = (train.predict(model, data, data.test.images).argmax(1) == data.test.targets).float()
    return {"cifar10_accuracy": float(right[:CIFAR_TEST].mean()), "voc_accuracy": float(right[CIFAR_TEST:].mean())}


def learn(model, data, epochs=EPOCHS):
    """Train a classifier of pictures of 32 px; returns its `scores` and the epochs."""
    train.fit(model, data, train.SHORT, epochs=epochs, eval_every=epochs)
    return scores(model, data) | {"epochs": epochs}


def of_cifar10(network):
    """The network with the first ten of its twelve answers alone: its last linear layer gives those of CIFAR-10."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    last.weight, last.bias = nn.Parameter(last.weight[:10]), nn.Parameter(last.bias[:10])
    return network


def with_control(trained):
    """A named network (Weights) with CIFAR-10's answers, and itself before its training: a dict of two networks."""
    return {"trained": of_cifar10(trained.load()), "untrained": of_cifar10(trained.untrained())}


def table(trained):
    """A Table of one row: a named network (Weights), its size, how long it was trained, and how well it does."""
    record = trained.record
    row = {
        "network": trained.title,
        "parameters": count_parameters(trained.build()),
        "trained on": record["data"],
        "epochs": record["metrics"]["epochs"],
        "test accuracy on CIFAR-10 in %": 100 * record["metrics"]["cifar10_accuracy"],
    }
    return Table([row], decimals=1)


def logit_of(outputs, labels):
    """What Grad-CAM is asked: the logit of the animal, (N,), from logits (N, 12) and positions in VOC_ANIMALS (N,)."""
    return outputs.gather(1, PLACES[labels].to(outputs.device)[:, None])[:, 0]
