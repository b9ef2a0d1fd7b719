from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn
from toys import small_network

from helpers import inspect


def on_meta(build):
    with torch.device("meta"):
        return build()


def macs_by_formula(model, input_shape):
    """Multiply-adds of convolutions and linear layers from their shapes in a real pass."""
    total, handles = [], []

    def hook(module, inputs, output):
        per_output = module.weight[0].numel()  # weights that meet in one output number
        if isinstance(module, nn.ConvTranspose2d):  # each input number meets them instead
            output = inputs[0]
        total.append(output[0].numel() * per_output)

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)):
            handles.append(module.register_forward_hook(hook))
    model.eval()(torch.zeros(1, *input_shape, device=next(model.parameters()).device))
    for handle in handles:
        handle.remove()
    return sum(total)


# Parameters and multiply-adds as published with torchvision's weights (there in millions and in 10^9).
KNOWN = {
    "vgg16": (138_357_544, 15_470_264_320),
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet50": (25_557_032, 4_089_184_256),
    "mobilenet_v2": (3_504_872, 300_774_272),
    "alexnet": (61_100_840, 714_188_480),
}


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_and_multiply_adds_of_known_networks(name):
    model = on_meta(lambda: torchvision.models.get_model(name))
    parameters, macs = KNOWN[name]
    weights = torchvision.models.get_model_weights(name).DEFAULT.meta
    assert inspect.count_parameters(model) == parameters == weights["num_params"]
    assert inspect.count_macs(model, (3, 224, 224)) == macs == macs_by_formula(model, (3, 224, 224))
    assert abs(macs / 1e9 - weights["_ops"]) < 6e-4


@pytest.mark.parametrize(
    ("layer", "input_shape", "expected"),
    [
        (nn.Conv2d(3, 8, 3), (3, 10, 12), 8 * 8 * 10 * 3 * 9),
        (nn.Conv2d(3, 8, 3, padding=1, bias=False), (3, 10, 12), 8 * 10 * 12 * 3 * 9),
        (nn.Conv2d(4, 8, 5, stride=2, padding=2), (4, 10, 12), 8 * 5 * 6 * 4 * 25),
        (nn.Conv2d(8, 16, 3, padding=1, groups=4), (8, 6, 6), 16 * 36 * 2 * 9),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 6, 6), 8 * 36 * 9),
        (nn.Conv2d(2, 2, 3, padding=2, dilation=2), (2, 6, 6), 2 * 36 * 2 * 9),
        (nn.Conv2d(3, 5, (1, 7)), (3, 4, 9), 5 * 4 * 3 * 3 * 7),
        (nn.ConvTranspose2d(6, 4, 2, stride=2), (6, 5, 5), 25 * 6 * 4 * 4),
        (nn.Sequential(nn.Flatten(), nn.Linear(20, 7)), (5, 2, 2), 140),
        (nn.Linear(4, 7), (3, 5, 4), 3 * 5 * 4 * 7),
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(3)), (3, 8, 8), 0),
    ],
)
def test_multiply_adds_by_hand(layer, input_shape, expected):
    assert inspect.count_macs(layer, input_shape) == expected


def test_parameters_count_batch_normalisation_but_not_its_averages():
    assert inspect.count_parameters(nn.BatchNorm2d(7)) == 14
    assert inspect.count_parameters(nn.Conv2d(3, 8, 5)) == 3 * 8 * 25 + 8


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet", "alexnet"])
def test_rows_of_a_trace_add_up(name):
    model = on_meta(
        lambda: torchvision.models.get_model(name, **({"init_weights": False} if name == "googlenet" else {}))
    )
    if name == "googlenet":
        model.aux1 = model.aux2 = None  # they run in training only
    table = inspect.trace(model, (3, 224, 224))
    assert sum(table["parameters"]) == inspect.count_parameters(model)
    assert sum(table["multiply-adds"]) == inspect.count_macs(model, (3, 224, 224))


def test_a_trace_row_by_row_in_the_order_of_running():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 2)
            self.act = nn.ReLU()
            self.first = nn.Conv2d(3, 4, (3, 5), stride=2, groups=1, bias=False)
            self.depthwise = nn.Conv2d(4, 4, 1, groups=4)

        def forward(self, x):
            x = self.act(self.depthwise(self.act(self.first(x))))
            return self.last(x.mean((2, 3)))

    model = Backwards().train()
    table = inspect.trace(model, (3, 9, 11))
    assert table["layer"] == ["first", "act", "depthwise", "act", "last"]
    assert table["kind"] == ["Conv 3x5, stride 2", "ReLU", "Conv 1x1, 4 groups", "ReLU", "Linear"]
    assert table["output"] == ["4x4x4", "4x4x4", "4x4x4", "4x4x4", "2"]
    assert table["parameters"] == [4 * 3 * 15, 0, 8, 0, 10]
    assert table["multiply-adds"] == [16 * 4 * 3 * 15, 0, 16 * 4, 0, 8]
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_a_trace_counts_shared_weights_once_and_leaves_what_is_between_layers():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.twin = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
            self.twin.weight = self.conv.weight

        def forward(self, x):
            x = self.conv(self.conv(x))
            x = x @ x.transpose(2, 3)  # not a layer
            return self.twin(x)

    table = inspect.trace(Shared(), (3, 4, 4))
    assert table["parameters"] == [84, 0, 3] and sum(table["parameters"]) == inspect.count_parameters(Shared())
    assert table["multiply-adds"] == [3 * 16 * 27] * 3


def test_counting_needs_no_numbers_and_changes_none():
    model = small_network(dropout=0.5).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inspect.count_macs(model, (3, 8, 8))
    inspect.trace(model, (3, 8, 8))
    assert model.training and model[0].weight.device.type == "cpu"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert inspect.count_macs(model.double(), (3, 8, 8)) == 8 * 64 * 27 + 16
    with pytest.raises(RuntimeError):
        inspect.count_macs(model, (4, 8, 8))
    assert model.training


def positive_stack(layers):
    """Convolutions (kernel, stride, dilation) without padding whose weights are positive, so that nothing cancels."""
    stack, channels = [], 3
    for kernel, stride, dilation in layers:
        conv = nn.Conv2d(channels, 4, kernel, stride, dilation=dilation)
        nn.init.uniform_(conv.weight, 0.1, 1)
        nn.init.zeros_(conv.bias)
        stack += [conv, nn.ReLU(inplace=True)]
        channels = 4
    return nn.Sequential(*stack)


@pytest.mark.parametrize(
    "layers",
    [
        [(3, 1, 1)],
        [(3, 1, 1)] * 3,
        [(5, 1, 1), (3, 2, 1), (3, 1, 1)],
        [(3, 2, 1), (2, 2, 1), (3, 1, 1)],
        [(3, 1, 1), (3, 1, 2), (1, 1, 1)],
    ],
)
def test_the_support_of_the_gradient_is_the_receptive_field(layers):
    r, jump = 1, 1
    for kernel, stride, dilation in layers:
        r, jump = r + (kernel - 1) * dilation * jump, jump * stride
    stack = positive_stack(layers)
    images = torch.rand(2, 3, 40, 40) + 0.1
    for layer in (str(2 * len(layers) - 2), str(2 * len(layers) - 1)):  # the convolution and its ReLU
        field = inspect.input_gradient(stack, layer, images)
        assert field.shape == (2, 40, 40)
        rows, columns = (field[0] > 0).any(1).nonzero().flatten(), (field[0] > 0).any(0).nonzero().flatten()
        assert len(rows) == len(columns) == r
        assert bool((field[0][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] > 0).all())
        # the middle unit
        middle = stack(images).shape[-1] // 2
        assert int(rows[0]) == int(columns[0]) == middle * jump


def test_input_gradient_is_that_of_the_named_layer_even_before_a_relu_in_place():
    conv = nn.Conv2d(1, 1, 3, bias=False)
    images = torch.randn(1, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    for sign in (1, -1):  # one of the two makes the ReLU shut
        conv.weight.data = sign * torch.arange(1.0, 10).reshape(1, 1, 3, 3)
        field = inspect.input_gradient(nn.Sequential(conv, nn.ReLU(inplace=True)), "0", images)
        assert torch.equal(field[0, 2:5, 2:5], torch.arange(1.0, 10).reshape(3, 3)) and field.sum() == 45


def test_input_gradient_averages_over_channels_and_restores_the_mode():
    conv = nn.Conv2d(3, 2, 1, bias=False)
    conv.weight.data = torch.tensor([[1.0, -2.0, 3.0], [1.0, -2.0, 0.0]]).reshape(2, 3, 1, 1)
    model = nn.Sequential(conv, nn.Flatten()).train()
    field = inspect.input_gradient(model, "0", torch.zeros(1, 3, 5, 5))
    expected = torch.zeros(5, 5)
    expected[2, 2] = (2 + 4 + 3) / 3
    assert torch.equal(field[0], expected) and model.training
    with pytest.raises(KeyError, match="convolutions are: 0"):
        inspect.input_gradient(model, "conv", torch.zeros(1, 3, 5, 5))
    with pytest.raises(ValueError, match="not a feature map"):
        inspect.input_gradient(model, "1", torch.zeros(1, 3, 5, 5))


@pytest.mark.parametrize("batch_size", [1, 5])
def test_time_per_image_is_per_image_and_the_median_after_warming_up(monkeypatch, batch_size):
    clock, durations = {"now": 0.0}, iter([90.0, 80.0, *[3.0, 1.0, 2.0] * 50])
    monkeypatch.setattr(inspect, "time", SimpleNamespace(perf_counter=lambda: clock["now"]))
    shapes = []

    class Slow(nn.Conv2d):
        def forward(self, images):
            shapes.append((tuple(images.shape), self.training))
            clock["now"] += next(durations)
            return super().forward(images)

    seconds = inspect.time_per_image(Slow(3, 2, 1).train(), (3, 4, 6), batch_size=batch_size, seconds=200)
    # 90 and 80 s warm up, and 3, 1, 2, ... until 200 s are over
    assert seconds == 2 / batch_size
    assert set(shapes) == {((batch_size, 3, 4, 6), False)} and len(shapes) == 17


# ------------------------------------------------------------------------------------------- watching layers


def test_watch_gives_inputs_and_outputs_by_name_in_order():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1)).train()
    images = torch.randn(2, 1, 4, 4)
    found = inspect.watch(model, nn.Conv2d, images, lambda given, made: (given, made))
    assert list(found) == ["0", "2"] and model.training
    assert torch.equal(found["0"][0], images)
    assert torch.equal(found["2"][0], model[1](model[0](images))) and torch.equal(found["2"][1], model(images))
    assert list(inspect.watch(model, ("1", "2"), images, lambda given, made: made)) == ["1", "2"]
    assert list(inspect.watch(model, (nn.ReLU, nn.Conv2d), images, lambda given, made: made)) == ["0", "1", "2"]


def test_watch_leaves_no_hook_and_says_when_there_is_nothing_to_watch():
    model = nn.Sequential(nn.Conv2d(1, 2, 1))
    with pytest.raises(ZeroDivisionError):
        inspect.watch(model, nn.Conv2d, torch.randn(1, 1, 2, 2), lambda given, made: 1 / 0)
    assert not model[0]._forward_hooks
    with pytest.raises(ValueError, match="BatchNorm2d"):
        inspect.watch(model, nn.BatchNorm2d, torch.randn(1, 1, 2, 2), lambda given, made: made)


def test_what_watch_gives_can_be_trained_on():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
    found = inspect.watch(model, nn.Conv2d, torch.randn(2, 1, 4, 4), lambda given, made: made)
    assert not found["0"].is_inference() and not found["0"].requires_grad
    head = nn.Conv2d(2, 1, 1)
    head(found["0"]).sum().backward()
    assert head.weight.grad.any()


# ------------------------------------------------------------------------------------------- layers that are not leaves


class Scaled(nn.Module):
    """A layer with a number of its own beside another layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.scale, self.spare = nn.Conv2d(3, 4, 1), nn.Parameter(torch.ones(4, 1, 1)), nn.Linear(4, 4)
        self.mix = nn.Parameter(torch.ones(4, 4))

    def forward(self, x):
        return torch.einsum("nchw,cd->ndhw", self.scale * self.conv(x), self.mix)


def test_a_trace_counts_what_a_container_holds_itself_and_what_is_never_called():
    model = nn.Sequential(Scaled(), nn.ReLU())
    table = inspect.trace(model, (3, 5, 6))
    assert table["layer"] == ["0.conv", "0", "1", "0.spare"]
    assert table["kind"] == ["Conv 1x1", "Scaled", "ReLU", "Linear"]
    assert table["output"] == ["4x5x6", "4x5x6", "4x5x6", "not called"]
    assert table["parameters"] == [16, 20, 0, 20]
    assert sum(table["parameters"]) == inspect.count_parameters(model)
    assert table["multiply-adds"] == [30 * 12, 30 * 16, 0, 0]
    assert sum(table["multiply-adds"]) == inspect.count_macs(model, (3, 5, 6))


def test_a_trace_of_layers_that_give_several_tensors():
    class Pair(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)), {"maps": x, "two": [x[:, :1], x[:, :, :2]]}

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.rnn = Pair(), nn.RNN(3, 2, batch_first=True)

        def forward(self, x):
            _, found = self.pair(x)
            return self.rnn(found["maps"].flatten(2).transpose(1, 2))[0]

    table = inspect.trace(Recurrent(), (3, 4, 5))
    assert table["layer"] == ["pair", "rnn"]
    assert table["output"] == ["3, 3x4x5, 1x4x5, 3x2x5", "20x2, 1x2"]
    assert table["parameters"] == [0, 2 * 3 + 2 * 2 + 2 + 2]
