"""A training that is killed, anywhere, ends with the weights, history and random numbers of one that was not."""

import itertools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import red_or_blue, small_network, weights

from helpers import train
from helpers.data import Dataset

ROOT = Path(__file__).parents[2]
RECIPES = {
    "sgd": dict(lr=0.05),
    "ema": dict(lr=0.05, ema=0.8, eval_every=2),
    "adamw": dict(optimizer="adamw", schedule="steps", ema=0.5),
    "muon": dict(recipe=train.SHORT),
}


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    """A killed process loses nothing that it has handed to the system; only a power cut does."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


class Killed(BaseException):
    """What stands for a kill within this process: nothing catches it."""


def block(folder, recipe, kill_at=None, every=0.0, epochs=3, **changes):
    """Two trainings in a row, cut off at one of their 18 steps; all that they leave behind."""
    steps = itertools.count()

    def loss(model, images, targets):
        if next(steps) == kill_at:
            raise Killed
        return train.CrossEntropy()(model, images, targets)

    train.set_seed(5)
    networks = [small_network(seed, dropout=0.3) for seed in (1, 2)]
    with train.checkpoints(folder, every):
        histories = [
            train.fit(network, red_or_blue(50), epochs=epochs, batch_size=16, loss=loss, **recipe, **changes)
            for network in networks
        ]
    return {
        "weights": torch.cat([weights(network) for network in networks]),
        "modes": [module.training for network in networks for module in network.modules()],
        "rows": [{k: v for k, v in row.items() if k != "seconds"} for h in histories for row in h.rows],
        "losses": [history.losses for history in histories],
        "records": [(history.recipe, history.stopped) for history in histories],
        "random": (random.random(), np.random.rand(), torch.rand(3).tolist()),
        "calls": next(steps),
    }


def same(one, other, but=("calls",)):
    assert torch.equal(one["weights"], other["weights"])
    for name in one.keys() - {"weights", *but}:
        assert one[name] == other[name], name


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_training_cut_off_at_any_step_ends_as_if_it_had_not_been(tmp_path, recipe):
    whole = block(tmp_path / "whole", RECIPES[recipe])
    assert whole["calls"] == 18
    # three steps an epoch, nine a training: first, within, last, and the first of the next
    for step in (0, 1, 2, 3, 8, 9, 13):
        folder = tmp_path / str(step)
        with pytest.raises(Killed):
            block(folder, RECIPES[recipe], kill_at=step)
        resumed = block(folder, RECIPES[recipe])
        same(resumed, whole)
        assert resumed["calls"] == 18 - step


def test_without_checkpoints_it_is_the_same_training(tmp_path):
    kept = block(tmp_path, RECIPES["ema"])
    train.set_seed(5)
    networks = [small_network(seed, dropout=0.3) for seed in (1, 2)]
    for network in networks:
        train.fit(network, red_or_blue(50), epochs=3, batch_size=16, **RECIPES["ema"])
    assert torch.equal(torch.cat([weights(network) for network in networks]), kept["weights"])


def test_what_is_finished_is_not_trained_again(tmp_path):
    first = block(tmp_path, RECIPES["sgd"], every=1e9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit-001.checkpoint", "fit-002.checkpoint"]
    again = block(tmp_path, RECIPES["sgd"])
    same(again, first)
    assert again["calls"] == 0


def test_a_checkpoint_is_written_every_so_many_seconds(tmp_path, monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr(train, "time", type("Clock", (), {"perf_counter": staticmethod(lambda: clock["now"])}))
    written = []
    monkeypatch.setattr(train.Run, "save", lambda run: (written.append(run.step), setattr(run, "saved", run.seconds())))

    def loss(model, images, targets):
        clock["now"] += 1
        return train.CrossEntropy()(model, images, targets)

    with train.checkpoints(tmp_path, every=3):
        train.fit(small_network(), red_or_blue(128), epochs=1, batch_size=16, loss=loss)
    assert written == [3, 6, 8]


# ---------------------------------------------------------------------------------------------- a real kill


SCRIPT = """
import sys
import torch
from toys import red_or_blue, small_network, weights
from helpers import train

folder, kill_at = sys.argv[1], int(sys.argv[2])
steps = 0

def loss(model, images, targets):
    global steps
    if steps == kill_at:
        print("at the step", flush=True)
        sys.stdin.read()
    steps += 1
    return train.CrossEntropy()(model, images, targets)

train.set_seed(5)
networks = [small_network(seed, dropout=0.3) for seed in (1, 2)]
recipes = [dict(lr=0.05), dict(optimizer="adamw", ema=0.8)]
histories = []
with train.checkpoints(folder, every=0):
    for network, recipe in zip(networks, recipes):
        histories.append(train.fit(network, red_or_blue(50), epochs=3, batch_size=16, loss=loss, **recipe))
rows = [{k: v for k, v in row.items() if k != "seconds"} for h in histories for row in h.rows]
print(steps, [weights(network).tolist() for network in networks], rows, [h.losses for h in histories], torch.rand(3))
"""


def start(folder, kill_at=-1):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "COURSE_SILENT": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), str(kill_at)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)


def at_the_end(process):
    calls, rest = process.communicate()[0].split(" ", 1)
    return int(calls), rest


def test_killed_by_the_system(tmp_path):
    whole = start(tmp_path / "whole")
    # in the second epoch of the second training
    process = start(tmp_path / "killed", kill_at=13)
    assert process.stdout.readline() == "at the step\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "killed" / "fit-002.checkpoint").exists()
    calls, resumed = at_the_end(start(tmp_path / "killed"))
    all_calls, expected = at_the_end(whole)
    assert (calls, all_calls) == (18 - 13, 18)
    assert resumed == expected


# ---------------------------------------------------------------------------------------------- other trainings


def fit_once(folder, seed=1, data=None, **changes):
    model = small_network(seed)
    with train.checkpoints(folder):
        train.fit(model, data or red_or_blue(32), **({"epochs": 1, "batch_size": 16} | changes))
    return model


def other_images():
    data = red_or_blue(32)
    data.train.images[0, 0, 0, 0] += 1
    return data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.2}, "lr is 0.1 there and 0.2 here"),
        ({"epochs": 2}, "epochs is 1 there and 2 here"),
        ({"augment": train.Augment(shift=1)}, "augment is .*shift=4.* there and .*shift=1.* here"),
        ({"seed": 2}, "first weights"),
        ({"data": other_images()}, "train data"),
        ({"data": red_or_blue(48)}, "train data"),
    ],
)
def test_another_training_is_refused_and_its_checkpoint_kept(tmp_path, changes, message):
    fit_once(tmp_path)
    before = (tmp_path / "fit-001.checkpoint").read_bytes()
    with pytest.raises(ValueError, match=f"fit-001.*belongs to another training: .*{message}.*delete the file"):
        fit_once(tmp_path, **changes)
    assert (tmp_path / "fit-001.checkpoint").read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_named_and_the_training_starts_over(tmp_path, capsys, damage):
    expected = weights(fit_once(tmp_path))
    path = tmp_path / "fit-001.checkpoint"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-20]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        content = b""
    path.write_bytes(content)
    assert torch.equal(weights(fit_once(tmp_path)), expected)
    assert capsys.readouterr().out == "The checkpoint fit-001.checkpoint is damaged, so this training starts over.\n"
    fit_once(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_costs_no_training(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    fit_once(tmp_path / "file" / "folder")
    assert "could not be written" in capsys.readouterr().out


def test_an_interrupted_training_goes_on(tmp_path, capsys):
    steps = itertools.count()

    def loss(model, images, targets):
        if next(steps) == 3:
            raise KeyboardInterrupt
        return train.CrossEntropy()(model, images, targets)

    def fit():
        model = small_network()
        with train.checkpoints(tmp_path, every=0):
            return train.fit(model, red_or_blue(32), epochs=3, batch_size=16, loss=loss)

    with pytest.raises(train.Stopped):
        fit()
    assert fit().stopped == "finished"
    assert next(steps) == 3 + 1 + 3


def test_a_training_within_an_evaluation_is_not_counted(tmp_path):
    def with_a_probe(model, data):
        train.fit(small_network(), data, epochs=1, batch_size=16)
        return {}

    with train.checkpoints(tmp_path):
        train.fit(small_network(), red_or_blue(32), epochs=2, batch_size=16, evaluate=with_a_probe)
    assert len(list(tmp_path.iterdir())) == 1


class WithTeacher:
    """A loss whose teacher changes while it is used, as its batch normalisation is in training mode."""

    def __init__(self, kill_at):
        self.teacher, self.steps, self.kill_at = small_network(7).train(), 0, kill_at

    def __repr__(self):
        return "WithTeacher()"

    def __call__(self, model, images, targets):
        if self.steps == self.kill_at:
            raise Killed
        self.steps += 1
        return (model(images) - self.teacher(images).detach()).square().mean()


def test_networks_that_a_loss_holds_are_kept_too(tmp_path):
    def run(folder, kill_at=None):
        loss = WithTeacher(kill_at)
        with train.checkpoints(tmp_path / folder, every=0):
            train.fit(small_network(), red_or_blue(32), epochs=2, batch_size=16, loss=loss)
        return weights(loss.teacher)

    with pytest.raises(Killed):
        run("killed", kill_at=3)
    assert torch.equal(run("killed"), run("whole"))


def test_scores_of_numpy_are_kept_as_numbers(tmp_path):
    def fit():
        with train.checkpoints(tmp_path):
            return train.fit(
                small_network(),
                red_or_blue(16),
                epochs=1,
                batch_size=16,
                evaluate=lambda m, d: {"map": np.float64(0.5)},
            )

    assert fit()["map"] == fit()["map"] == [0.5]


def test_a_dataset_without_a_test_split_can_be_kept(tmp_path):
    data = red_or_blue(16)
    fit_once(tmp_path, data=Dataset(data.train, None, data.classes, data.provenance), evaluate=lambda m, d: {})
