"""The gallery: what is measured on a map, and that the page is that of the committed numbers and networks."""

import json

import pytest
import torch

from book import gallery as page_gallery
from helpers.weights import explorable

SIDE = page_gallery.SIDE


def one_box(left, top, right, bottom, label=0):
    return {
        "boxes": torch.tensor([[[left, top, right, bottom], [0.0, 0.0, SIDE, SIDE]]]),
        "labels": torch.tensor([[label, 4]]),  # the second animal is another one
        "masks": torch.zeros(1, SIDE, SIDE, dtype=torch.uint8),
        "has_mask": torch.tensor([True]),
    }


def test_scores_by_hand():
    targets, labels = one_box(0.0, 0.0, 64.0, 128.0), torch.tensor([0])
    targets["masks"][0, :64, :64] = 1
    maps = torch.zeros(1, SIDE, SIDE)
    maps[0, 10, 10], maps[0, 100, 10], maps[0, 10, 100] = 2.0, 1.0, 1.0
    found = page_gallery.scores(maps, targets, labels)
    assert found == {"energy in box": 75.0, "energy in mask": 50.0, "pointing game": 100.0, "empty maps": 0}
    maps[0, 10, 67] = 5.0  # four pixels beyond the box, within the tolerance
    assert page_gallery.scores(maps, targets, labels)["pointing game"] == 100.0
    maps[0, 10, 69] = 6.0
    assert page_gallery.scores(maps, targets, labels)["pointing game"] == 0.0
    nothing = page_gallery.scores(torch.zeros_like(maps), targets, labels)
    assert nothing["empty maps"] == 1 and nothing["pointing game"] == 0.0


def test_the_page_is_that_of_the_committed_numbers():
    assert page_gallery.PAGE.read_text() == page_gallery.text()


def test_the_numbers_are_those_of_the_committed_networks():
    found = json.loads(page_gallery.FOUND.read_text())
    assert {name: result["weights"] for name, result in found["networks"].items()} == {
        trained.title: page_gallery.of_file(trained.path) for trained in explorable()
    }, "a network was trained again: ./course pages --measure"


def test_the_stand_in_is_refused(monkeypatch):
    monkeypatch.setenv("COURSE_SOURCE", "standin")
    with pytest.raises(ValueError, match="needs real photographs"):
        page_gallery.measure()


def test_how_long_they_were_trained():
    assert page_gallery._how_long({16}) == "alike, for 16 passes"
    assert page_gallery._how_long({4, 16}).startswith("for 4 passes with SGD or, later, for 16 with")
    assert page_gallery._span([7, 3, 7]) == "3 to 7" and page_gallery._span([5, 5]) == "5"
