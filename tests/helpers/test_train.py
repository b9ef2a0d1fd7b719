import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import red_or_blue, small_network, weights

from helpers import train
from helpers.data import Dataset, Provenance, Split

quickly = settings(max_examples=25, deadline=None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------------- augmentation


@quickly
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_flip_gives_each_image_or_its_mirror(n, height, width, seed):
    images = torch.randn(n, 3, height, width, generator=generator(seed))
    flipped, targets = train.Augment(flip=True, shift=0)(images, torch.arange(n), generator(seed))
    for before, after in zip(images, flipped, strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(-1))
    assert torch.equal(targets, torch.arange(n))


def test_flip_mirrors_about_half_of_the_images():
    images = torch.randn(1000, 1, 2, 4, generator=generator())
    flipped, _ = train.Augment(flip=True, shift=0)(images, torch.zeros(1000), generator())
    assert 430 < sum(not torch.equal(a, b) for a, b in zip(images, flipped, strict=True)) < 570


def translated(image, dy, dx):
    """One image (C, H, W) moved by whole pixels, 0 where nothing comes in, pixel by pixel."""
    moved = torch.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                moved[:, y + dy, x + dx] = image[:, y, x]
    return moved


@quickly
@given(st.integers(1, 4), st.integers(3, 7), st.integers(3, 7), st.integers(1, 3), st.integers(0, 1000))
def test_shift_moves_each_image_by_whole_pixels_and_fills_with_zero(n, height, width, shift, seed):
    images = 1 + torch.rand(n, 2, height, width, generator=generator(seed))  # no pixel is 0
    shifted, _ = train.Augment(flip=False, shift=shift)(images, torch.zeros(n), generator(seed))
    assert shifted.shape == images.shape
    steps = range(-shift, shift + 1)
    for before, after in zip(images, shifted, strict=True):
        assert any(torch.equal(after, translated(before, dy, dx)) for dy in steps for dx in steps)


def test_shift_reaches_every_offset_in_both_directions_and_each_image_has_its_own():
    spot = torch.zeros(600, 1, 9, 9)
    spot[:, :, 4, 4] = 1
    shifted, _ = train.Augment(flip=False, shift=2)(spot, torch.zeros(600), generator())
    places = {tuple(image[0].nonzero()[0].tolist()) for image in shifted}
    assert places == {(y, x) for y in range(2, 7) for x in range(2, 7)}


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
def test_cutout_is_a_square_of_the_given_side_clipped_at_the_border(side):
    images = torch.ones(500, 2, 7, 9)
    cut, _ = train.Augment(flip=False, shift=0, cutout=side)(images, torch.zeros(500), generator())
    full, clipped = 0, 0
    for image in cut:
        assert torch.equal(image[0], image[1])  # the same hole in every channel
        hole = image[0] == 0
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        assert hole.sum() == len(rows) * len(columns) > 0  # a rectangle
        for line, length in ((rows, 7), (columns, 9)):
            assert torch.equal(line, torch.arange(line[0], line[-1] + 1))  # without gaps
            assert len(line) == side or (len(line) < side and (line[0] == 0 or line[-1] == length - 1))
        full += hole.sum() == side**2
        clipped += hole.sum() < side**2
    assert full and (clipped or side == 1)


@quickly
@given(st.booleans(), st.integers(0, 2), st.integers(0, 3), st.sampled_from([torch.float32, torch.bfloat16]))
def test_augment_keeps_shape_and_type_and_uses_only_its_generator(flip, shift, cutout, dtype):
    images = torch.randn(5, 3, 6, 8, generator=generator()).to(dtype)
    augment = train.Augment(flip, shift, cutout)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, _ = augment(images, torch.zeros(5), generator(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, _ = augment(images, torch.zeros(5), generator(3))
    assert torch.equal(first, second)
    assert first.shape == images.shape and first.dtype == dtype


# ------------------------------------------------------------------------------------- boxes and masks move along


def scene(n=6, side=32, seed=0):
    """Images with one bright rectangle each, its box and its mask (class 1)."""
    images = torch.zeros(n, 3, side, side)
    masks = torch.zeros(n, side, side, dtype=torch.uint8)
    boxes, labels = torch.zeros(n, 2, 4), torch.full((n, 2), -1)
    labels[:, 0] = 3
    draw = generator(seed)
    for i in range(n):
        left, top = torch.randint(0, side // 2, (2,), generator=draw).tolist()
        right, bottom = left + side // 4, top + side // 3
        boxes[i, 0] = torch.tensor([left, top, right, bottom])
        images[i, :, top:bottom, left:right] = 1
        masks[i, top:bottom, left:right] = 1
    return images, {"boxes": boxes, "labels": labels, "masks": masks}


@pytest.mark.parametrize("zoom", [(1.0, 1.0), (0.5, 0.8), (1.2, 1.6), (0.6, 1.4)])
@pytest.mark.parametrize("seed", [1, 2])
def test_box_mask_and_picture_move_together(zoom, seed):
    images, targets = scene(20, 64)
    moved, found = train.AugmentScene(zoom=zoom)(images, targets, generator(seed))
    kept = 0
    for image, mask, box, label in zip(moved, found["masks"], found["boxes"][:, 0], found["labels"][:, 0], strict=True):
        if label < 0:
            assert not box.any()
            continue
        kept += 1
        for inside in (image[0] > 0.5, mask == 1):
            ys, xs = inside.nonzero(as_tuple=True)
            seen = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert torch.allclose(seen.float(), box, atol=1.01), (seen, box)
    assert kept > 5
    assert (found["labels"][:, 1] == -1).all() and not found["boxes"][:, 1].any()


def test_a_scene_that_is_not_zoomed_is_itself_or_its_mirror():
    images, targets = scene()
    moved, found = train.AugmentScene(zoom=(1, 1))(images, targets, generator())
    mirrored = 0
    for i in range(len(images)):
        plain = torch.allclose(moved[i], images[i], atol=1e-5)
        assert plain or torch.allclose(moved[i], images[i].flip(-1), atol=1e-5)
        assert torch.equal(found["masks"][i], targets["masks"][i] if plain else targets["masks"][i].flip(-1))
        mirrored += not plain
    assert 0 < mirrored < len(images)


def test_outside_is_the_mean_colour_and_void():
    images, masks = torch.ones(8, 3, 32, 32), torch.ones(8, 32, 32, dtype=torch.uint8)
    moved, found = train.AugmentScene(zoom=(2, 2))(images, masks, generator())
    assert found.dtype == torch.uint8
    inside = found == 1
    assert set(found.unique().tolist()) == {1, 255}
    assert inside.sum() == pytest.approx(8 * 16 * 16, rel=0.1)
    assert moved[:, 0][inside].mean() > 0.95 and moved[:, 0][~inside].mean() < 0.1


def test_a_box_that_is_mostly_outside_is_dropped():
    images, targets = scene(200)
    _, strict = train.AugmentScene(zoom=(0.4, 0.4), visible=0.99)(images, targets, generator())
    _, mild = train.AugmentScene(zoom=(0.4, 0.4), visible=0.01)(images, targets, generator())
    kept, more = ((found["labels"][:, 0] >= 0).sum() for found in (strict, mild))
    assert 0 < kept < more < 200
    inside = mild["boxes"][mild["labels"] >= 0]
    assert inside.min() >= 0 and inside.max() <= 32


def test_no_augment_changes_nothing():
    images, targets = torch.randn(2, 3, 4, 4), torch.arange(2)
    same = train.no_augment(images, targets, generator())
    assert same[0] is images and same[1] is targets


# ---------------------------------------------------------------------------------------------- losses


def test_label_smoothing_is_a_mixture_with_the_uniform_distribution():
    logits, labels = torch.randn(6, 4, generator=generator()), torch.tensor([0, 1, 2, 3, 0, 1])
    mixed = 0.8 * F.one_hot(labels, 4) + 0.2 / 4
    by_hand = -(mixed * logits.log_softmax(1)).sum(1).mean()
    assert torch.isclose(train.CrossEntropy(0.2)(lambda images: logits, None, labels), by_hand)
    # and probabilities are accepted as targets
    assert torch.isclose(train.CrossEntropy()(lambda images: logits, None, mixed), by_hand)


def test_the_loss_is_computed_in_float32():
    logits = torch.randn(4, 3, generator=generator())
    loss = train.CrossEntropy()(lambda images: logits.bfloat16(), None, torch.tensor([0, 1, 2, 0]))
    assert loss.dtype == torch.float32


def test_mixed_targets_train():
    data = red_or_blue()

    def mixup(images, targets, generator):
        share = float(torch.rand((), generator=generator))
        targets = F.one_hot(targets, 2).float()
        return share * images + (1 - share) * images.roll(1, 0), share * targets + (1 - share) * targets.roll(1, 0)

    history = train.fit(small_network(), data, epochs=8, batch_size=32, augment=mixup)
    assert history.last("test_accuracy") > 0.9


def test_targets_can_be_a_dict_and_the_loss_a_function():
    plain = red_or_blue()
    marked = {"kind": plain.train.targets, "weight": torch.arange(len(plain.train)).float()}
    data = Dataset(Split(plain.train.images, marked), plain.test, plain.classes, plain.provenance)
    seen = []

    def loss(model, images, targets):
        seen.append(targets["weight"])
        # each row of the dict still belongs to its image
        assert torch.equal(plain.train.targets[targets["weight"].long()], targets["kind"])
        assert torch.equal(images, data.normalize(plain.train.images[targets["weight"].long()]))
        return F.cross_entropy(model(images), targets["kind"])

    model = small_network()
    history = train.fit(model, data, epochs=2, batch_size=32, loss=loss, augment=train.no_augment)
    assert history.recipe["loss"] == "loss"
    for epoch in (seen[:4], seen[4:]):  # every image once in an epoch
        assert torch.equal(torch.cat(epoch).sort().values, marked["weight"])
    assert not torch.equal(seen[0], seen[4])  # in a new order each time


# ---------------------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("autocast", [False, True])
def test_fit_learns_with_either_optimizer_and_either_precision(optimizer, autocast):
    data, model = red_or_blue(), small_network()
    before = train.evaluate(model, data)
    lr = {"sgd": None, "adamw": 0.02}[optimizer]
    history = train.fit(model, data, epochs=10, batch_size=32, optimizer=optimizer, lr=lr, autocast=autocast)
    assert history.last("test_loss") < 0.5 * before["test_loss"]
    assert history.last("test_accuracy") > 0.95
    assert history.stopped == "finished" and history["epoch"] == list(range(1, 11))
    assert history.recipe["dtype"] == ("bfloat16 autocast" if autocast else "float32")
    assert history.data == "drawn stand-in for toy, seed 0"
    assert train.evaluate(model, data) == {name: history.last(name) for name in ("test_loss", "test_accuracy")}
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[0].weight.dtype == torch.float32
    assert history.images_per_second > 0


def test_autocast_reaches_the_loss_function():
    types = []

    def loss(model, images, targets):
        outputs = model(images)
        types.append(outputs.dtype)
        return F.cross_entropy(outputs.float(), targets)

    for autocast in (True, False):
        train.fit(small_network(), red_or_blue(16), epochs=1, batch_size=16, loss=loss, autocast=autocast)
    assert types == [torch.bfloat16, torch.float32]


def test_same_seed_same_training():
    def run(seed):
        model = small_network(dropout=0.2)
        train.set_seed(seed)
        history = train.fit(model, red_or_blue(), epochs=2, batch_size=32, seed=seed)
        return weights(model), history.losses, history["train_loss"]

    first, again, other = run(1), run(1), run(2)
    assert torch.equal(first[0], again[0]) and first[1:] == again[1:]
    assert not torch.equal(first[0], other[0])


def test_set_seed_seeds_all_three():
    import random

    import numpy as np

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    train.set_seed(5)
    first = draw()
    train.set_seed(5)
    assert draw() == first
    train.set_seed(6)
    assert not set(draw()) & set(first)


def batches(model, **options):
    seen = []

    def loss(model, images, targets):
        seen.append((images.clone(), targets.clone()))
        return F.cross_entropy(model(images), targets)

    train.fit(model, red_or_blue(70), epochs=2, batch_size=32, loss=loss, autocast=False, **options)
    return seen


def test_same_batches_whatever_the_model():
    small, large = batches(small_network(seed=0)), batches(small_network(seed=1, width=16, dropout=0.5))
    assert len(small) == len(large) == 4  # 70 images: two whole batches per epoch, the rest is left out
    for (images, targets), (other_images, other_targets) in zip(small, large, strict=True):
        assert len(images) == 32
        assert torch.equal(images, other_images) and torch.equal(targets, other_targets)
    assert not torch.equal(small[0][0], batches(small_network(), seed=1)[0][0])


@pytest.mark.parametrize("name", train.SCHEDULES)
def test_schedules(name):
    factors = [train.SCHEDULES[name](progress / 100) for progress in range(101)]
    if name == "constant":
        assert set(factors) == {1.0}
    elif name == "steps":
        assert factors == pytest.approx([1.0] * 50 + [0.1] * 25 + [0.01] * 26)
    else:
        assert max(factors) == factors[20] == 1
        assert factors[0] == pytest.approx(0.05) and factors[100] == pytest.approx(0)
        assert factors[10] == pytest.approx(0.525) and factors[60] == pytest.approx(0.5)
        rises = [b > a for a, b in zip(factors, factors[1:], strict=False)]
        assert rises == [True] * 20 + [False] * 80


@pytest.mark.parametrize("schedule", ["one-cycle", "steps", lambda progress: 1 - progress])
def test_every_step_has_the_learning_rate_of_the_schedule(schedule):
    used, factor = [], train.SCHEDULES.get(schedule, schedule) if isinstance(schedule, str) else schedule
    held = {}

    def make(parameters, lr, weight_decay):
        held["optimizer"] = torch.optim.SGD(parameters, lr, weight_decay=weight_decay)
        return held["optimizer"]

    def loss(model, images, targets):
        used.append(held["optimizer"].param_groups[0]["lr"])
        return F.cross_entropy(model(images), targets)

    train.fit(small_network(), red_or_blue(64), epochs=5, batch_size=16, schedule=schedule, optimizer=make, lr=0.3,
              loss=loss)  # fmt: skip
    assert used == pytest.approx([0.3 * factor(step / 20) for step in range(20)])


def test_frozen_weights_stay():
    model = small_network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    train.fit(model, red_or_blue(64), epochs=1, batch_size=16)
    assert torch.equal(model[0].weight, before)


def test_ema_is_what_is_evaluated_and_kept():
    after_each_step = []

    def loss(model, images, targets):
        after_each_step.append(weights(model))
        return F.cross_entropy(model(images), targets)

    def plain():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 2))

    recipe = dict(epochs=2, batch_size=32, lr=0.05, seed=3, autocast=False)
    model = plain()
    train.fit(model, red_or_blue(), loss=loss, **recipe)
    path = [*after_each_step[1:], weights(model)]
    expected = path[0]
    for step in path[1:]:
        expected = 0.8 * expected + 0.2 * step

    averaged = plain()
    history = train.fit(averaged, red_or_blue(), ema=0.8, **recipe)
    assert torch.allclose(weights(averaged), expected, atol=1e-6)
    assert not torch.allclose(weights(model), expected, atol=1e-3)
    assert train.evaluate(averaged, red_or_blue())["test_loss"] == history.last("test_loss")


def test_ema_with_batch_normalisation_evaluates_what_it_keeps():
    model, data = small_network(), red_or_blue()
    history = train.fit(model, data, epochs=4, batch_size=32, ema=0.5)
    assert history.last("test_accuracy") > 0.9
    assert train.evaluate(model, data)["test_loss"] == history.last("test_loss")


def test_a_split_smaller_than_the_batch_is_one_batch():
    history = train.fit(small_network(), red_or_blue(6), epochs=3, batch_size=128)
    assert history.recipe["batch_size"] == 6 and len(history.rows) == 3


def test_eval_every_and_own_scores():
    calls = []

    def scores(model, data):
        calls.append(model.training)
        return {"iou": 0.5}

    history = train.fit(small_network(), red_or_blue(16), epochs=5, batch_size=16, evaluate=scores, eval_every=2)
    assert history["epoch"] == [2, 4, 5] and history["iou"] == [0.5] * 3 and len(calls) == 3


def test_every_step_trains_in_training_mode_whatever_the_evaluation_leaves_behind():
    modes = []

    def loss(model, images, targets):
        modes.append(model.training)
        return F.cross_entropy(model(images), targets)

    model = small_network().eval()
    train.fit(
        model, red_or_blue(16), epochs=3, batch_size=8, loss=loss, evaluate=lambda model, data: model.eval() and {}
    )
    assert modes == [True] * 6 and not model.training


def test_losses_are_logged_every_ten_steps_and_at_the_end():
    history = train.fit(small_network(), red_or_blue(64), epochs=3, batch_size=8, seed=0)  # 24 steps
    assert [step for step, _ in history.losses] == [10, 20, 24]
    values = iter(range(24))

    def loss(model, images, targets):
        return model(images).sum() * 0 + next(values)

    history = train.fit(small_network(), red_or_blue(64), epochs=3, batch_size=8, loss=loss)
    assert history.losses == [(10, 4.5), (20, 14.5), (24, 21.5)]
    assert history["train_loss"] == [3.5, 11.5, 19.5]


# ---------------------------------------------------------------------------------------------- a budget in seconds


def test_seconds_are_seconds_of_training(monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=lambda: clock["now"]))

    def slow(model, data):
        clock["now"] += 100
        return {"test_accuracy": 0.5}

    def loss(model, images, targets):
        clock["now"] += 1
        return F.cross_entropy(model(images), targets)

    history = train.fit(small_network(), red_or_blue(64), seconds=10, batch_size=16, evaluate=slow, loss=loss)
    assert history["seconds"] == [4, 8, 10] and history["epoch"] == [1, 2, 3]
    # the rate of the last step, nine tenths of the way
    assert history.last("lr") == pytest.approx(train.LEARNING_RATE["sgd"] * train.SCHEDULES["one-cycle"](0.9))
    assert history.images_per_second == 16


@pytest.mark.parametrize("budget", [3.9, 3.95, 3.99, 4.0, 4.01, 4.03, 4.05, 4.07, 4.1, 4.5])
def test_a_training_always_ends_with_an_evaluation(monkeypatch, budget):
    """Also when time is up between two epochs. The clock: a step takes 1 s, and every look at the clock 0.01 s."""
    clock = {"now": 0.0}

    def look():
        clock["now"] += 0.01
        return clock["now"]

    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=look))
    steps = []

    def loss(model, images, targets):
        clock["now"] += 1
        steps.append(clock["now"])
        return F.cross_entropy(model(images), targets)

    history = train.fit(small_network(), red_or_blue(32), seconds=budget, batch_size=16, loss=loss, eval_every=1000)
    assert len(history.rows) == 1 and math.isfinite(history.last("train_loss"))
    assert history.last("epoch") == -(-len(steps) // 2)
    assert budget <= history.last("seconds") < budget + 1.1


# ---------------------------------------------------------------------------------------------- early ends


class Scripted:
    """An evaluation that gives scripted accuracies and keeps the weights that it was given."""

    def __init__(self, *accuracies):
        self.accuracies, self.weights = accuracies, []

    def __call__(self, model, data):
        self.weights.append(weights(model))
        return {"test_accuracy": self.accuracies[len(self.weights) - 1]}


def loss_that_stops(at, how):
    """Cross-entropy, until at step `at` (from 0) `how` happens: an exception, or a factor on the loss."""
    steps = iter(range(10_000))

    def loss(model, images, targets):
        value = F.cross_entropy(model(images), targets)
        if next(steps) < at:
            return value
        if isinstance(how, float):
            return value * how
        raise how

    return loss


def ended_early(capsys, model, at, how, **recipe):
    """A training that `how` ends at step `at`, four steps an epoch: its history, and what the reader is told."""
    recipe |= {"epochs": 9, "batch_size": 16, "loss": loss_that_stops(at, how)}
    if how is not KeyboardInterrupt:
        return train.fit(model, red_or_blue(64), **recipe), capsys.readouterr().out
    with pytest.raises(train.Stopped) as stop:
        train.fit(model, red_or_blue(64), **recipe)
    assert capsys.readouterr().out == ""
    return stop.value.history, str(stop.value)


@pytest.mark.parametrize("ema", [None, 0.5])
@pytest.mark.parametrize(
    ("how", "stopped"), [(KeyboardInterrupt, "interrupted"), (math.nan, "diverged"), (math.inf, "diverged")]
)
def test_an_early_end_keeps_history_and_best_weights(capsys, how, stopped, ema):
    model, scores = small_network(), Scripted(0.5, 0.9, 0.7)
    history, said = ended_early(capsys, model, 13, how, evaluate=scores, ema=ema)
    assert history.stopped == stopped
    assert history["test_accuracy"] == [0.5, 0.9, 0.7]  # the fourth epoch is broken off
    assert torch.equal(weights(model), scores.weights[1])
    assert "best weights" in said
    if stopped == "diverged":
        assert "learning rate 3 to 10 times smaller" in said and "learning rate 0.1" in said
    assert not model.training


@pytest.mark.parametrize("how", [KeyboardInterrupt, math.nan])
def test_an_end_before_any_evaluation_restores_the_first_weights(capsys, how):
    model = small_network()
    before = weights(model)
    history, said = ended_early(capsys, model, 2, how)
    assert torch.equal(weights(model), before)
    assert "first weights" in said
    with pytest.raises(ValueError, match=rf"'test_accuracy'.*\({history.stopped}\) before its first evaluation"):
        history.last("test_accuracy")


def test_a_stop_is_an_interrupt_of_one_line_that_names_the_history():
    with pytest.raises(KeyboardInterrupt) as stop:
        train.fit(small_network(), red_or_blue(64), epochs=9, batch_size=16, loss=loss_that_stops(5, KeyboardInterrupt))
    (line,) = stop.value._render_traceback_()
    assert "\n" not in line and "step 5 (epoch 2)" in line and "train.interrupted" in line
    assert train.interrupted is stop.value.history and train.interrupted["epoch"] == [1]
    assert stop.value.__suppress_context__, "a script would show two tracebacks"


def test_a_stop_within_an_evaluation_that_trains_is_of_the_outer_training():
    def with_a_probe(model, data):
        train.fit(small_network(), data, epochs=1, loss=loss_that_stops(0, KeyboardInterrupt))

    model = small_network()
    with pytest.raises(train.Stopped) as stop:
        train.fit(model, red_or_blue(64), epochs=2, batch_size=32, evaluate=with_a_probe)
    assert train.interrupted is stop.value.history and train.interrupted.recipe["evaluate"] == "with_a_probe"
    assert not model.training


def test_without_an_accuracy_the_lowest_training_loss_is_best(capsys):
    model, kept = small_network(), []

    def scores(model, data):
        kept.append(weights(model))
        return {}

    history, _ = ended_early(capsys, model, 13, KeyboardInterrupt, evaluate=scores, lr=0.01)
    losses = history["train_loss"]
    assert torch.equal(weights(model), kept[losses.index(min(losses))])


def test_a_real_divergence_is_noticed(capsys):
    model = small_network()
    history = train.fit(model, red_or_blue(), epochs=20, batch_size=32, lr=1e30, schedule="constant", autocast=False)
    assert history.stopped == "diverged"
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert "not a finite number" in capsys.readouterr().out


def test_weights_broken_by_the_last_step_of_an_epoch_are_not_the_best():
    def loss(model, images, targets):  # a finite loss whose gradient is not
        return model(images).clamp(0, 0).sum() + (model[0].weight.sum() * 0).abs().sqrt()

    model = small_network()
    train.fit(model, red_or_blue(16), epochs=2, batch_size=16, loss=loss)
    assert weights(model).isfinite().all()


@pytest.mark.parametrize(("how", "error"), [(KeyboardInterrupt, KeyboardInterrupt), (math.nan, FloatingPointError)])
def test_no_early_end_raises_and_only_within_its_block(capsys, how, error):
    with pytest.raises(error) as raised, train.no_early_end():
        train.fit(small_network(), red_or_blue(64), epochs=9, batch_size=16, loss=loss_that_stops(5, how))
    assert raised.type is error
    history, _ = ended_early(capsys, small_network(), 5, how)
    assert history.stopped != "finished"


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, "either epochs=… or seconds=…"),
        ({"epochs": 1, "seconds": 1}, "not both"),
        ({"epochs": 0}, "positive"),
        ({"seconds": -1}, "positive"),
        ({"epochs": 1, "batch_size": 0}, "batch_size=0"),
        ({"epochs": 1, "optimizer": "adam"}, "'adam'.*sgd, adamw, or a function"),
        ({"epochs": 1, "schedule": "cosine"}, "'cosine'.*one-cycle, constant, steps, or a function"),
    ],
)
def test_a_recipe_that_makes_no_sense(recipe, message):
    with pytest.raises(ValueError, match=message):
        train.fit(small_network(), red_or_blue(16), **recipe)


def test_data_that_do_not_fit():
    good = red_or_blue(16)

    def fit_on(images, targets):
        data = Dataset(Split(images, targets), good.test, good.classes, Provenance("toy", False, ""))
        data.__dict__["_moments"] = good._moments
        train.fit(small_network(), data, epochs=1)

    with pytest.raises(TypeError, match="uint8.*float32"):
        fit_on(good.train.images.float(), good.train.targets)
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\).*\(1, 1, 8, 10\)"):
        fit_on(good.train.images[:, :1], good.train.targets)
    with pytest.raises(ValueError, match="16 training images, but 15 targets"):
        fit_on(good.train.images, good.train.targets[:15])
    with pytest.raises(ValueError, match="16 training images, but 3 targets"):
        fit_on(good.train.images, {"labels": good.train.targets, "boxes": torch.zeros(3)})
    with pytest.raises(ValueError, match="empty"):
        fit_on(good.train.images[:0], good.train.targets[:0])


# ---------------------------------------------------------------------------------------------- after training


@pytest.mark.parametrize("training", [True, False])
def test_predict_is_the_model_in_evaluation_mode(training):
    data, model = red_or_blue(33), small_network(dropout=0.5)
    train.fit(model, data, epochs=1, batch_size=8)
    with torch.no_grad():
        expected = model.eval()(data.normalize(data.test.images))
    model.train(training)
    outputs = train.predict(model, data, data.test.images, batch_size=5)  # 16 images: the last batch has one
    assert torch.allclose(outputs, expected, atol=1e-6)
    assert model.training is training and outputs.dtype == torch.float32


def test_evaluate_by_hand():
    data = red_or_blue(40)
    model = small_network().eval()
    logits = model(data.normalize(data.test.images)).detach()
    right = sum(int(row.argmax()) == int(label) for row, label in zip(logits, data.test.targets, strict=True))
    loss = -sum(row.log_softmax(0)[label] for row, label in zip(logits, data.test.targets, strict=True))
    assert train.evaluate(model, data) == pytest.approx({"test_accuracy": right / 20, "test_loss": float(loss) / 20})


def test_history_columns_and_file(tmp_path):
    history = train.fit(small_network(), red_or_blue(32), epochs=2, batch_size=16)
    history.save(tmp_path / "history.json")
    loaded = train.History.load(tmp_path / "history.json")
    assert [path.name for path in tmp_path.iterdir()] == ["history.json"]
    assert loaded.rows == history.rows and loaded.recipe == history.recipe and loaded.data == history.data
    assert loaded.last("test_accuracy") == history.rows[-1]["test_accuracy"] == history["test_accuracy"][-1]
    with pytest.raises(KeyError, match="'accuracy'.*epoch, seconds, lr, train_loss, test_loss, test_accuracy"):
        loaded["accuracy"]


def test_a_failed_save_keeps_the_file_that_was_there(tmp_path):
    path = tmp_path / "history.json"
    history = train.History("toy", {})
    history.save(path)
    history.recipe = {"loss": object()}  # cannot be written as JSON
    with pytest.raises(TypeError):
        history.save(path)
    assert train.History.load(path).recipe == {}


def test_recipe_is_recorded():
    history = train.fit(small_network(), red_or_blue(32), epochs=1, batch_size=16, seed=4, ema=0.9)
    recipe = history.recipe
    assert (recipe["epochs"], recipe["batch_size"], recipe["seed"], recipe["ema"], recipe["lr"]) == (1, 16, 4, 0.9, 0.1)
    assert recipe["augment"] == "Augment(flip=True, shift=4, cutout=0)"
    assert train.fit(small_network(), red_or_blue(8), epochs=1, optimizer="adamw").recipe["lr"] == 2e-3


def test_a_processor_trains_in_float32_unless_told(monkeypatch):
    assert not train.autocast_pays("cpu") and not train.autocast_pays("mps")
    history = train.fit(small_network(), red_or_blue(16), epochs=1, batch_size=16, device="cpu")
    assert history.recipe["dtype"] == "float32"
    for has_it in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda answer=has_it: answer)
        assert train.autocast_pays("cuda") is has_it


# ------------------------------------------------------------------------------------------- one batch by heart


def test_overfit_learns_a_batch_by_heart_and_a_broken_network_does_not():
    data = red_or_blue()
    assert train.overfit(small_network(), data, images=16, steps=40) < 0.1
    broken = small_network()
    for parameter in broken[:-1].parameters():
        parameter.requires_grad_(False)
    torch.nn.init.zeros_(broken[-1].weight)
    broken[-1].weight.requires_grad_(False)
    assert train.overfit(broken, data, images=16, steps=40) > 0.5


def test_overfit_sees_the_first_images_only_and_no_augmentation():
    data, seen = red_or_blue(), []

    def loss(model, images, targets):
        seen.append((images.clone(), targets.clone()))
        return train.CrossEntropy()(model, images, targets)

    train.overfit(small_network(), data, images=16, steps=3, loss=loss)
    first = data.normalize(data.train.images[:16])
    assert len(seen) == 3 and all(len(images) == 16 for images, _ in seen)
    assert torch.allclose(seen[0][0].sum(0), first.sum(0), atol=1e-4)
    assert sorted(seen[0][1].tolist()) == sorted(data.train.targets[:16].tolist())


def test_pixel_cross_entropy_leaves_void_out():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 8, 8, generator=draw, requires_grad=True)
    masks = torch.randint(6, (2, 8, 8), generator=draw).to(torch.uint8)
    masks[:, :2] = 255
    loss = train.pixel_cross_entropy(lambda images: logits, None, masks)
    logs = logits.log_softmax(1)
    known = [-logs[i, int(masks[i, y, x]), y, x] for i in range(2) for y in range(2, 8) for x in range(8)]
    assert torch.isclose(loss, torch.stack(known).mean(), rtol=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[:, :, :2].any() and gradient[:, :, 2:].any()


def test_predict_masks_is_the_highest_logit_of_every_pixel():
    data = red_or_blue(n=220)
    model = torch.nn.Conv2d(3, 5, 1)
    with torch.inference_mode():
        expected = model(data.normalize(data.train.images)).argmax(1)
    found = train.predict_masks(model, data, data.train.images)
    assert found.dtype == torch.uint8 and torch.equal(found.long(), expected)


# ------------------------------------------------------------------------------------------- the same, by hand


def average_of(average, model, decay):
    """One step of an exponential moving average of weights and buffers, in place."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor, 1 - decay)
        else:
            # the counter of batch normalisation; PyTorch averages and cuts it
            average[name].copy_(decay * average[name] + (1 - decay) * tensor)


def rise_and_fall(progress):
    if progress < 0.2:
        return 0.05 + 0.95 * progress / 0.2
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / (1 - 0.2)))


def trained_by_hand(model, data, optimizer, lr, schedule, augment, ema, epochs=3, batch_size=16, seed=4):
    draws = torch.Generator().manual_seed(seed)
    model.to(memory_format=torch.channels_last).train()
    per_epoch = len(data.train) // batch_size
    losses, average = [], None
    for step in range(epochs * per_epoch):
        if step % per_epoch == 0:
            order = torch.randperm(len(data.train), generator=draws)
        index = order[step % per_epoch * batch_size :][:batch_size]
        optimizer.param_groups[0]["lr"] = lr * schedule(step / (epochs * per_epoch))
        images = data.normalize(data.train.images[index]).contiguous(memory_format=torch.channels_last)
        images, targets = augment(images, data.train.targets[index], draws)
        loss = F.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if ema and average is None:
            average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        elif ema:
            average_of(average, model, ema)
    if ema:
        model.load_state_dict(average)
    return losses


@pytest.mark.parametrize("ema", [None, 0.7])
@pytest.mark.parametrize("augment", [train.no_augment, train.Augment(shift=2, cutout=3)])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fit_is_the_loop_that_one_would_write_by_hand(optimizer, augment, ema):
    data, ours, theirs = red_or_blue(70), small_network(dropout=0.2), small_network(dropout=0.2)
    lr, schedule = {"sgd": (0.1, "one-cycle"), "adamw": (0.02, "constant")}[optimizer]
    make = {
        "sgd": lambda: torch.optim.SGD(theirs.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=0.03),
        "adamw": lambda: torch.optim.AdamW(theirs.parameters(), lr, weight_decay=0.03),
    }[optimizer]
    torch.manual_seed(0)
    history = train.fit(ours, data, epochs=3, batch_size=16, optimizer=optimizer, lr=lr, schedule=schedule,
                        weight_decay=0.03, augment=augment, ema=ema, seed=4, autocast=False, device="cpu")  # fmt: skip
    torch.manual_seed(0)
    by_hand = {"one-cycle": rise_and_fall, "constant": lambda progress: 1.0}[schedule]
    losses = trained_by_hand(theirs, data, make(), lr, by_hand, augment, ema)
    assert torch.equal(weights(ours), weights(theirs))
    epochs = [sum(losses[start : start + 4], torch.zeros(())) / 4 for start in (0, 4, 8)]
    assert history["train_loss"] == [float(mean) for mean in epochs]


# ------------------------------------------------------------------------------------------- recipes and groups


def test_a_recipe_and_what_differs_from_it():
    recipe = train.Recipe(epochs=2, batch_size=16, lr=0.05, seed=3)
    one, other = small_network(), small_network()
    history = train.fit(one, red_or_blue(32), recipe, ema=0.5)
    train.fit(other, red_or_blue(32), epochs=2, batch_size=16, lr=0.05, seed=3, ema=0.5)
    assert torch.equal(weights(one), weights(other))
    assert recipe.ema is None and history.recipe["ema"] == 0.5 and history.recipe["seed"] == 3
    seconds = train.fit(small_network(), red_or_blue(16), recipe, epochs=None, seconds=0.01).recipe
    assert (seconds["epochs"], seconds["seconds"]) == (None, 0.01)
    with pytest.raises(TypeError, match="momentum"):
        train.fit(one, red_or_blue(32), epochs=1, momentum=0.5)


def test_none_for_a_function_means_the_usual_one():
    history = train.fit(small_network(), red_or_blue(16), epochs=1, augment=None, loss=None, evaluate=None)
    assert history.recipe["augment"] == "Augment(flip=True, shift=4, cutout=0)"
    assert history.recipe["loss"] == "CrossEntropy(label_smoothing=0.0)"
    assert history.last("test_accuracy") <= 1


def test_the_record_names_functions_without_an_address():
    class Loss(train.CrossEntropy):
        __repr__ = object.__repr__

    recipe = train.Recipe(epochs=1, loss=Loss(), schedule=rise_and_fall).record()
    assert recipe["schedule"] == "rise_and_fall" and "Loss object" in recipe["loss"] and "0x" not in recipe["loss"]


def test_each_group_of_parameters_has_its_own_peak():
    used = []

    def make(parameters, lr, weight_decay):
        slow = {"params": parameters[:2], "lr": lr / 10}
        optimizer = torch.optim.SGD([slow, {"params": parameters[2:]}], lr, weight_decay=weight_decay)
        optimizer.register_step_pre_hook(lambda *_: used.append([group["lr"] for group in optimizer.param_groups]))
        return optimizer

    train.fit(small_network(), red_or_blue(32), epochs=2, batch_size=8, optimizer=make, lr=0.2)
    factors = [rise_and_fall(step / 8) for step in range(8)]
    assert used == [pytest.approx([0.02 * factor, 0.2 * factor]) for factor in factors]


# ------------------------------------------------------------------------------------------- the untrained control


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_untrained_control_is_the_network_before_its_first_training(ema):
    model, data = small_network(dropout=0.3), red_or_blue(32)
    before = weights(model)
    for _ in range(2):
        train.fit(model, data, epochs=2, batch_size=16, ema=ema)
    trained = weights(model)
    control = train.untrained(model)
    assert torch.equal(weights(control), before) and not any(module.training for module in control.modules())
    assert torch.equal(weights(model), trained) and not torch.equal(trained, before)
    assert train.evaluate(control, data) == train.evaluate(small_network().eval(), data)


def test_a_network_that_was_not_trained_here_has_no_control():
    with pytest.raises(ValueError, match="has not trained this network"):
        train.untrained(small_network())


# ------------------------------------------------------------------------------------------- refused at once


def refused(error, message, data=None, **recipe):
    """`fit` refuses this, and the network has not changed."""
    model = small_network(dropout=0.5).train()
    before = weights(model)
    with pytest.raises(error, match=message):
        train.fit(model, data or red_or_blue(16), **({"epochs": 1, "batch_size": 8} | recipe))
    assert torch.equal(weights(model), before) and all(module.training for module in model.modules())


def with_split(name, images=None, targets=None):
    """`red_or_blue` with another training or test split."""
    data = red_or_blue(16)
    old = getattr(data, name)
    images = old.images if images is None else images
    split = Split(images, old.targets if targets is None else targets)
    changed = replace(data, **{name: split})
    changed.__dict__["_moments"] = data._moments
    return changed


def test_what_cannot_be_right_is_refused_before_the_first_step():
    images, labels = red_or_blue(16).train.images, red_or_blue(16).train.targets
    refused(ValueError, "eval_every=0", eval_every=0)
    refused(ValueError, "positive", seconds=math.nan, epochs=None)
    refused(ValueError, "test split is empty", with_split("test", images[:0], labels[:0]))
    refused(TypeError, "uint8.*float32", with_split("train", images.float()))
    refused(TypeError, "uint8.*float64", with_split("test", images[:8].double()))
    for name, n in (("train", 16), ("test", 8)):
        for wrong in (2, -1):
            bad = labels[:n].clone()
            bad[-1] = wrong
            refused(
                ValueError, rf"label {wrong} is outside 0\.\.1: the network has 2 outputs", with_split(name, None, bad)
            )
    masks = torch.full((16, 8, 10), 255, dtype=torch.uint8)
    masks[3, 4, 4] = 2
    recipe = dict(loss=train.pixel_cross_entropy, evaluate=lambda model, data: {})
    refused(ValueError, "label 2 is outside", with_split("train", None, masks), **recipe)


def test_a_network_without_logits_is_refused():
    model = nn.Sequential(small_network(), nn.Flatten(0))
    with pytest.raises(ValueError, match=r"gives \(2,\) for one image, not logits"):
        train.fit(model, red_or_blue(16), epochs=1)


def test_a_loss_may_be_anything_that_can_be_called():
    @dataclass
    class Loss:
        """Has no hash, as any dataclass that can change."""

        factor: float = 2.0

        def __call__(self, model, images, targets):
            return self.factor * F.cross_entropy(model(images), targets)

    history = train.fit(small_network(), red_or_blue(16), epochs=1, loss=Loss())
    assert "Loss(factor=2.0)" in history.recipe["loss"]


def test_an_empty_test_split_is_fine_where_nothing_is_evaluated_on_it():
    data = with_split("test", red_or_blue(16).test.images[:0], torch.zeros(0, dtype=torch.int64))
    assert train.fit(small_network(), data, epochs=1, evaluate=lambda model, data: {}).stopped == "finished"
    with pytest.raises(ValueError, match="test split is empty"):
        train.evaluate(small_network(), data)


def test_a_batch_of_void_only_costs_nothing():
    masks = torch.full((4, 8, 8), 255, dtype=torch.uint8)
    model = nn.Conv2d(3, 2, 1)
    images = torch.randn(4, 3, 8, 8, generator=generator())
    loss = train.pixel_cross_entropy(model, images, masks)
    loss.backward()
    assert loss == 0 and not model.weight.grad.any() and not model.bias.grad.any()
    data = with_split("train", None, torch.full((16, 8, 10), 255, dtype=torch.uint8))
    history = train.fit(model, data, epochs=1, batch_size=8, loss=train.pixel_cross_entropy, evaluate=lambda m, d: {})
    assert history.stopped == "finished" and history.last("train_loss") == 0


def test_what_predict_gives_can_be_trained_on():
    data, model = red_or_blue(16), small_network()
    outputs = train.predict(model, data, data.train.images)
    assert not outputs.is_inference() and not outputs.requires_grad
    head = nn.Linear(2, 2)
    head(outputs).sum().backward()
    assert head.weight.grad.any()
