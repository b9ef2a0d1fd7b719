"""What a reader asks of a network: shapes, parameters, multiply-adds, receptive field, time per image."""

import time

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from helpers.cam import feature_map
from helpers.table import Table


def count_parameters(module):
    """The number of learnable numbers, batch normalisation's scale and shift included, running averages not."""
    return sum(parameter.numel() for parameter in module.parameters())


def _dry_run(model, input_shape):
    """Run the model on shapes alone: its weights and an input (1, *input_shape) on the `meta` device."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    meta = {name: tensor.to("meta") for name, tensor in state.items()}
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return functional_call(model, meta, (torch.empty(1, *input_shape, device="meta", dtype=dtype),))
    finally:
        model.train(was_training)


def count_macs(model, input_shape):
    """Multiply-adds of one image (C, H, W): convolutions, their transposes and linear layers, as papers count them.

    PyTorch's own counter gives floating-point operations, two to a multiply-add. Nothing is computed, so a large
    network costs no time; build it under `torch.device("meta")` and it costs no memory either.
    """
    with FlopCounterMode(display=False) as counter:
        _dry_run(model, input_shape)
    return counter.get_total_flops() // 2


def trace(model, input_shape):
    """Shape, parameters and multiply-adds of every leaf layer, in the order in which they run, as a Table.

    input_shape: (C, H, W) of one image. Parameters that are used again count where they come first.
    """
    rows, handles, counted, flops_before = [], [], set(), {}

    def watch(name, module):
        own = set(module.parameters()) - counted
        counted.update(own)
        parameters = [sum(parameter.numel() for parameter in own)]

        def before(_, inputs):
            flops_before[name] = counter.get_total_flops()

        def after(_, inputs, output):
            rows.append(
                {
                    "layer": name,
                    "kind": _kind(module),
                    "output": "x".join(map(str, output.shape[1:])),
                    "parameters": parameters.pop() if parameters else 0,
                    "multiply-adds": (counter.get_total_flops() - flops_before[name]) // 2,
                }
            )

        return module.register_forward_pre_hook(before), module.register_forward_hook(after)

    for name, module in model.named_modules():
        if not list(module.children()):
            handles += watch(name, module)
    try:
        with FlopCounterMode(display=False) as counter:
            _dry_run(model, input_shape)
    finally:
        for handle in handles:
            handle.remove()
    return Table(rows)


def _kind(module):
    kind = type(module).__name__
    if isinstance(module, nn.Conv2d):
        kernel = "x".join(map(str, module.kernel_size))
        stride = f", stride {module.stride[0]}" if module.stride != (1, 1) else ""
        groups = f", {module.groups} groups" if module.groups > 1 else ""
        return f"Conv {kernel}{stride}{groups}"
    return kind


def watch(model, kind, images, measure):
    """`measure(input, output)` of every module of a kind during one pass in evaluation mode: name -> what it gave.

    kind: a class, a tuple of classes, or a collection of names. images: (N, C, H, W), normalised. The order is that
    in which the modules run; a module that runs twice keeps its last value.
    """
    by_class = isinstance(kind, (type, tuple)) and not (isinstance(kind, tuple) and isinstance(kind[0], str))
    chosen = {n: m for n, m in model.named_modules() if (isinstance(m, kind) if by_class else n in kind)}
    if not chosen:
        raise ValueError(f"no module of this network is {kind}.")
    found, was_training = {}, model.training

    def catch(name):
        def hook(_, given, made):
            found[name] = measure(given[0], made)

        return hook

    handles = [module.register_forward_hook(catch(name)) for name, module in chosen.items()]
    model.eval()
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return found


def input_gradient(model, layer, images):
    """How strongly each input pixel moves the centre unit of `layer`: mean |gradient| over channels, (N, H, W).

    The unit is the middle position of the layer's map, all channels summed. Its support is the theoretical
    receptive field; its bulk is the effective one (Luo et al., 2016).
    """
    images = images.detach().clone().requires_grad_()
    maps, _ = feature_map(model, layer, images)
    with torch.enable_grad():
        centre = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2].sum()
    (gradient,) = torch.autograd.grad(centre, images)
    return gradient.abs().mean(1)


def time_per_image(model, input_shape, batch_size=1, seconds=1.0):
    """Median seconds per image of a forward pass in evaluation mode, on the model's device.

    input_shape: (C, H, W). Two passes warm up; then it repeats for about `seconds`.
    """
    device = next(model.parameters()).device
    images = torch.randn(batch_size, *input_shape, device=device).contiguous(memory_format=torch.channels_last)
    was_training = model.training
    model.eval()
    times = []
    with torch.inference_mode():
        until = time.perf_counter() + seconds
        while len(times) < 5 or time.perf_counter() < until:
            start = time.perf_counter()
            output = model(images)
            if device.type != "cpu":
                output.sum().item()  # wait for the device
            times.append(time.perf_counter() - start)
    model.train(was_training)
    times = sorted(times[2:])
    return times[len(times) // 2] / batch_size
