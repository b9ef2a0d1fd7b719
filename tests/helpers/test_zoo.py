"""The zoo: every network is there, was trained with the code that is there, and answers what Grad-CAM asks."""

import pytest
import torch

from helpers import cam, chapters, data, weights, zoo
from helpers.backbone import CLASSES


def test_every_paper_with_a_network_is_in_it():
    assert [member.chapter for member in zoo.ZOO.values()] == [
        name for name in chapters.names() if name != "15_grad_cam"
    ]


def test_the_committed_weights_are_current():
    assert len(weights.weights("zoo")) == len(zoo.ZOO)
    assert weights.stale("zoo") == []


def test_the_committed_networks_have_learnt():
    for name, member in zoo.ZOO.items():
        (measure, score), *more = member.weights.record["metrics"].items()
        least = {"cifar10_accuracy": 0.5, "mean_iou": 0.18, "average_recall": 0.2, "mAP": 0.3}[measure]
        assert score > least, f"{name}: {measure} {score}"


@pytest.mark.parametrize("name", zoo.ZOO)
def test_grad_cam_has_at_least_8x8_positions_and_reacts(name):
    member, photographs = zoo.ZOO[name], data.voc_animals(128, train=20, test=4)
    model, labels = member.load(), torch.tensor([0, 1, 2, 3])
    x = zoo.to_input(member, photographs, photographs.test.images)
    assert x.shape == (4, 3, member.size, member.size)
    maps = cam.grad_cam(model, member.layer, x, lambda outputs: member.score(outputs, labels), relu=False)
    assert maps.shape[0] == 4 and min(maps.shape[1:]) >= 8
    assert (maps.abs().amax((1, 2)) > 0).all()


def test_logit_of_takes_the_animal():
    logits = torch.arange(24.0).view(2, 12)
    labels = torch.tensor([data.VOC_ANIMALS.index("sheep"), data.VOC_ANIMALS.index("cat")])
    assert zoo.logit_of(logits, labels).tolist() == [CLASSES.index("sheep"), 12 + CLASSES.index("cat")]


def test_mean_logit_of_averages_where_the_animal_is_the_answer():
    logits = torch.zeros(2, 6, 4, 4)
    logits[0, 3, :2] = torch.tensor([1.0, 3.0])[:, None]  # label 2 is class 3; it is the answer in two rows
    logits[1, 1] = -1.0  # nowhere the answer: the mean over all pixels
    assert zoo.mean_logit_of(logits, torch.tensor([2, 0])).tolist() == [2.0, -1.0]


def test_best_objectness_is_the_first_number_of_an_anchor():
    answers = torch.tensor([[[1.0, 9.0, 9.0, 9.0, 9.0], [2.0, 0.0, 0.0, 0.0, 0.0]]])
    assert zoo.best_objectness(answers, torch.tensor([0])).tolist() == [2.0]


def test_best_detection_of_is_confidence_times_probability():
    outputs = torch.randn(2, 3, 3, 15, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([4, 1])
    confidence = outputs[..., [4, 9]].sigmoid().amax(-1)
    probability = outputs[..., 10:].softmax(-1)
    best = [(confidence[i] * probability[i, ..., label]).max() for i, label in enumerate(labels.tolist())]
    assert torch.allclose(zoo.best_detection_of(outputs, labels), torch.stack(best).log())
