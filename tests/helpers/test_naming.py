"""The task that chapters' classifiers share: which answers are asked for, and what their scores are shares of."""

import pytest
import torch
from torch import nn
from toys import dataset_of, noise, random_images

from helpers import naming, train
from helpers.data import CIFAR10_CLASSES, VOC_ANIMALS, Split


class Remembers(nn.Module):
    """Says for each image what its red corner names, in twelve logits."""

    def __init__(self):
        super().__init__()
        self.flatten, self.classifier = nn.Flatten(), nn.Linear(3 * 4 * 5, 12)

    def forward(self, x):
        return self.classifier(self.flatten(x))


def test_the_first_ten_answers_are_cifars():
    assert naming.CLASSES[:10] == CIFAR10_CLASSES
    network, x = Remembers().eval(), noise(6, 3, 4, 5)
    before = network(x)
    torch.testing.assert_close(naming.of_cifar10(network)(x), before[:, :10])


def test_a_network_and_its_control_have_cifars_answers():
    class Kept:
        load = staticmethod(lambda: Remembers().eval())
        untrained = staticmethod(lambda: Remembers().eval())

    networks, x = naming.with_control(Kept), noise(2, 3, 4, 5)
    assert list(networks) == ["trained", "untrained"]
    assert [network(x).shape for network in networks.values()] == [(2, 10), (2, 10)]


def test_the_table_says_how_long_a_network_was_trained():
    class Kept:
        title, build = "A network", Remembers
        record = {"data": "five pictures", "metrics": {"cifar10_accuracy": 0.625, "epochs": 16}}

    (row,) = naming.table(Kept).rows
    assert list(row.values()) == ["A network", 12 * 61, "five pictures", 16, 62.5]


def test_a_hidden_linear_layer_keeps_its_outputs():
    network = nn.Sequential(nn.Flatten(), nn.Linear(60, 16), nn.ReLU(), nn.Linear(16, 12))
    x = noise(2, 3, 4, 5)
    before = network(x)
    torch.testing.assert_close(naming.of_cifar10(network)(x), before[:, :10])


def test_the_logit_of_an_animal():
    outputs, labels = noise(5, 12), torch.tensor([4, 0, 3, 1, 2])
    for found, output, label in zip(naming.logit_of(outputs, labels), outputs, labels, strict=True):
        assert found == output[naming.CLASSES.index(VOC_ANIMALS[label])]


def test_scores_are_of_cifars_images_and_of_the_animals(monkeypatch):
    monkeypatch.setattr(naming, "CIFAR_TEST", 4)
    test = Split(random_images(10, 4, 5), torch.arange(10) % 3)
    data = dataset_of(random_images(6, 4, 5, seed=1), torch.zeros(6, dtype=torch.long), test=test)
    answers = torch.tensor([0, 1, 2, 1, 1, 2, 2, 2, 0, 2])  # right: three of the first four, two of the last six
    monkeypatch.setattr(train, "predict", lambda *_: nn.functional.one_hot(answers, 12).float())
    assert naming.scores(None, data) == pytest.approx({"cifar10_accuracy": 3 / 4, "voc_accuracy": 2 / 6})


def test_learning_says_for_how_long():
    data = dataset_of(random_images(20, 4, 5), torch.arange(20) % 12, names=naming.CLASSES)
    network = Remembers()
    before = network.classifier.weight.detach().clone()
    found = naming.learn(network, data, epochs=2)
    assert found["epochs"] == 2 and set(found) == {"epochs", "cifar10_accuracy", "voc_accuracy"}
    assert not torch.equal(network.classifier.weight, before)
