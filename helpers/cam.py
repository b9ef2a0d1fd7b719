"""Grad-CAM for any layer of any model (Selvaraju et al., 2017). Chapter 15 derives it; here it is a tool."""

import itertools

import torch
import torch.nn.functional as F

from helpers.modes import evaluating


def find_layer(model, layer):
    """The module named `layer` (or `layer` itself, if it is a module of `model`).

    Raises KeyError with the names of the convolutions when there is no such module.
    """
    modules = dict(model.named_modules())
    if isinstance(layer, torch.nn.Module):
        if any(layer is module for module in modules.values()):
            return layer
        raise KeyError("that layer is not part of this model.")
    if layer in modules and layer:
        return modules[layer]
    convolutions = [name for name, module in modules.items() if isinstance(module, torch.nn.Conv2d)]
    raise KeyError(f"no layer named {layer!r}. The convolutions are: {', '.join(convolutions)}.")


def feature_map(model, layer, images):
    """The output of `layer` for `images`, (N, K, h, w), with its graph, and that of the model.

    The model is in evaluation mode for the pass. Raises KeyError for an unknown layer, ValueError for one that gives no
    feature map or does not run exactly once, and for a network that was built under `torch.inference_mode()`.
    """
    caught = []

    def catch(module, inputs, output):
        caught.append(output)
        # a ReLU in place after this layer must not overwrite what was caught
        return output.clone() if isinstance(output, torch.Tensor) else None

    if any(tensor.is_inference() for tensor in itertools.chain(model.parameters(), model.buffers())):
        raise ValueError("this network was built under torch.inference_mode(), so nothing in it has a gradient.")
    handle = find_layer(model, layer).register_forward_hook(catch)
    try:
        with evaluating(model), torch.inference_mode(False), torch.enable_grad():
            # a tensor from inference mode has no gradient, its copy may
            outputs = model(images.clone() if images.is_inference() else images)
    finally:
        handle.remove()
    name = type(layer).__name__ if isinstance(layer, torch.nn.Module) else repr(layer)
    if len(caught) != 1:
        raise ValueError(f"layer {name} ran {len(caught)} times in one pass; choose one that runs once.")
    shape = tuple(getattr(caught[0], "shape", ()))
    if len(shape) != 4:
        raise ValueError(f"layer {name} gives {shape or type(caught[0]).__name__}, not a feature map (N, K, h, w).")
    return caught[0], outputs


def _scores(outputs, target):
    """One score per image (N,), before any softmax."""
    if callable(target):
        return target(outputs)
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        what = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else f"a {type(outputs).__name__}"
        raise ValueError(
            f"this network gives {what}, not one logit per class (N, classes). Say what is to be explained: "
            "target = a function from the network's output to one score per image."
        )
    if target is None:
        target = outputs.argmax(1)
    target = torch.as_tensor(target, device=outputs.device).long().expand(len(outputs))
    if target.min() < 0 or target.max() >= outputs.shape[1]:
        raise ValueError(f"target class {target.tolist()} is outside 0..{outputs.shape[1] - 1}.")
    return outputs.gather(1, target[:, None]).squeeze(1)


def grad_cam(model, layer, images, target=None, *, relu=True, size=None):
    """Where `layer` speaks for `target`: one map per image.

    layer: name or module whose output A is (N, K, h, w).
    images: (N, C, H, W), normalised, on the model's device.
    target: class index, one index per image, a function from the model's output to a score per image (N,), or None
        for the predicted class. An output that is not (N, classes) needs a function.
    relu: keep only what speaks for the target (the paper's equation 2). False keeps the sign.
    size: (H, W) to resize the maps to, bilinearly; None leaves them at (h, w).

    Returns a tensor (N, h, w) or (N, *size), not normalised. The model is in evaluation mode for the pass, and
    gradients are taken even where the caller has switched them off. Raises KeyError for an unknown layer, ValueError
    for a layer without a feature map or that the score does not depend on.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # the images require gradients so that a model with frozen weights has a graph, too
        activation, outputs = feature_map(model, layer, images.detach().clone().requires_grad_())
        score = _scores(outputs, target)
        if not (isinstance(score, torch.Tensor) and score.requires_grad):
            raise ValueError("the score has no gradient: target must compute it from the network's output, in PyTorch.")
        (gradient,) = torch.autograd.grad(score.sum(), activation, allow_unused=True)
        if gradient is None:
            raise ValueError("the score does not depend on this layer.")
        # alpha_k of equation 1
        weights = gradient.mean((2, 3), keepdim=True)
        maps = (weights * activation).sum(1).detach()
        if relu:
            maps = maps.relu()
        if size is not None:
            maps = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return maps


def unit_range(maps):
    """Each map of (N, h, w) scaled to [0, 1]; a constant map becomes 0."""
    low = maps.amin((1, 2), keepdim=True)
    span = maps.amax((1, 2), keepdim=True) - low
    return torch.where(span > 0, (maps - low) / span.clamp_min(torch.finfo(maps.dtype).tiny), 0.0)
