"""What a reader asks of a network: shapes, parameters, multiply-adds, receptive field, time per image."""

import time

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from helpers.cam import feature_map
from helpers.modes import evaluating
from helpers.table import Table


def count_parameters(module):
    """The number of learnable numbers, batch normalisation's scale and shift included, running averages not."""
    return sum(parameter.numel() for parameter in module.parameters())


def _dry_run(model, input_shape):
    """Run the model on shapes alone: its weights and an input (1, *input_shape) on the `meta` device."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    meta = {name: tensor.to("meta") for name, tensor in state.items()}
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    with evaluating(model), torch.no_grad():
        return functional_call(model, meta, (torch.empty(1, *input_shape, device="meta", dtype=dtype),))


def count_macs(model, input_shape):
    """Multiply-adds of one image (C, H, W): convolutions, their transposes and linear layers, as papers count them.

    PyTorch's own counter gives floating-point operations, two to a multiply-add. Nothing is computed, so a large
    network costs no time; build it under `torch.device("meta")` and it costs no memory either.
    """
    with FlopCounterMode(display=False) as counter:
        _dry_run(model, input_shape)
    return counter.get_total_flops() // 2


def trace(model, input_shape):
    """Output, parameters and multiply-adds of every layer, in the order in which they end, as a Table.

    input_shape: (C, H, W) of one image. A layer is a module without others in it, or with parameters of its own beside
    them; what stands in the others is not counted again. Parameters that are used again count where they come first,
    and those of a layer that is never called in a last row of its own.
    """
    rows, handles, running, left = [], [], [], {}
    counter = FlopCounterMode(display=False)

    def watch(name, module, own):
        left[name] = (module, sum(parameter.numel() for parameter in own))

        def before(_, inputs):
            # flops at the start, and of them those of layers within
            running.append([counter.get_total_flops(), 0])

        def after(_, inputs, output):
            start, within = running.pop()
            flops = counter.get_total_flops() - start
            if running:
                running[-1][1] += flops
            _, parameters = left.pop(name, (None, 0))
            rows.append(_row(name, module, _shape(output), parameters, (flops - within) // 2))

        return module.register_forward_pre_hook(before), module.register_forward_hook(after)

    counted = set()
    for name, module in model.named_modules():
        own = set(module.parameters(recurse=False)) - counted
        if own or not list(module.children()):
            counted |= own
            handles += watch(name, module, own)
    try:
        with counter:
            _dry_run(model, input_shape)
    finally:
        for handle in handles:
            handle.remove()
    return Table(rows + [_row(name, module, "not called", own, 0) for name, (module, own) in left.items() if own])


def _row(name, module, output, parameters, macs):
    return {"layer": name, "kind": _kind(module), "output": output, "parameters": parameters, "multiply-adds": macs}


def _shape(output):
    """Shape without the batch axis: `64x8x8`; of several tensors, one after the other."""
    if isinstance(output, torch.Tensor):
        return "x".join(map(str, output.shape[1:]))
    if isinstance(output, dict):
        output = output.values()
    if isinstance(output, (tuple, list)) or not isinstance(output, (str, bytes)) and hasattr(output, "__iter__"):
        return ", ".join(_shape(part) for part in output)
    return type(output).__name__


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
    found = {}

    def catch(name):
        def hook(_, given, made):
            found[name] = measure(given[0], made)

        return hook

    handles = [module.register_forward_hook(catch(name)) for name, module in chosen.items()]
    try:
        with evaluating(model), torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def input_gradient(model, layer, images):
    """How strongly each input pixel moves the centre unit of `layer`: mean |gradient| over channels, (N, H, W).

    The unit is the middle position of the layer's map, all channels summed. Its support is the theoretical
    receptive field; its bulk is the effective one (Luo et al., 2016).
    """
    with torch.inference_mode(False), torch.enable_grad():
        images = images.detach().clone().requires_grad_()
        maps, _ = feature_map(model, layer, images)
        centre = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2].sum()
        (gradient,) = torch.autograd.grad(centre, images)
        return gradient.abs().mean(1)


def time_per_image(model, input_shape, batch_size=1, seconds=1.0):
    """Median seconds per image of a forward pass in evaluation mode, on the model's device.

    input_shape: (C, H, W). Two passes warm up; then it repeats for about `seconds`.
    """
    device = next(model.parameters()).device
    images = torch.randn(batch_size, *input_shape, device=device).contiguous(memory_format=torch.channels_last)
    times = []
    with evaluating(model), torch.no_grad():
        until = time.perf_counter() + seconds
        while len(times) < 5 or time.perf_counter() < until:
            start = time.perf_counter()
            output = model(images)
            if device.type != "cpu":
                output.sum().item()  # wait for the device
            times.append(time.perf_counter() - start)
    times = sorted(times[2:])
    return times[len(times) // 2] / batch_size
