"""Muon: SGD with momentum whose step for a convolution has no direction stronger than another.

The gradient of a convolution is mostly a few strong directions. Muon (K. Jordan and others, 2024,
https://kellerjordan.github.io/posts/muon) takes the step that has the same singular vectors and singular values
near 1, so that weak directions are learned at the same rate.

PyTorch's own Muon refuses convolutions, timm's takes them; both compute in bfloat16, which a processor without that
format imitates slowly (`benchmarks/README.md` has the times). Hence this one, in the parameters' own format.
"""

from collections import defaultdict

import torch

# Jordan's coefficients: steep at zero, so that small singular values grow fast; in return they end near 1, not at 1
LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315


def orthogonalize(matrices, steps=5):
    """Matrices (N, rows, columns) with the same singular vectors and singular values near 1, about 0.7 to 1.2.

    Newton-Schulz iteration: x <- a x + b (x x') x + c (x x')² x moves every singular value by the same polynomial.
    Values far below the largest need more `steps`; zero stays zero.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    # the Frobenius norm is at least the largest singular value, so all begin at most at 1
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=CUBIC, alpha=QUINTIC)
        x = torch.baddbmm(x, polynomial, x, beta=LINEAR)
    return x.mT if tall else x


def is_convolution(parameter):
    """Whether this is a filter bank (out, in, k, k) that combines channels; a depthwise one (in = 1) does not."""
    return parameter.ndim == 4 and parameter.shape[1] > 1


class Muon(torch.optim.Optimizer):
    """Muon for convolutions, SGD with Nesterov momentum for all other parameters, at the same learning rate.

    A bank of filters (out, in, k, k) is one matrix (out, in k k). Depthwise filters, linear layers, biases and batch
    normalisation go by SGD.
    weight_decay: for what goes by SGD. A convolution gets none: its step has a length of its own, whatever the
        gradient's, and batch normalisation takes the scale out of its weights.
    momentum: of Muon and of SGD.
    """

    def __init__(self, parameters, lr, weight_decay=0.0, momentum=(0.95, 0.9)):
        parameters = list(parameters)
        groups = [
            {"params": [p for p in parameters if is_convolution(p)], "weight_decay": 0.0, "muon": True},
            {"params": [p for p in parameters if not is_convolution(p)], "weight_decay": weight_decay, "muon": False},
        ]
        for group, own in zip(groups, momentum, strict=True):
            group["momentum"] = own
        super().__init__([group for group in groups if group["params"]], {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient; returns what `closure` returns, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            updates = [(p, self._momentum(p, group)) for p in group["params"] if p.grad is not None]
            for p, update in _orthogonal(updates) if group["muon"] else updates:
                p.add_(update, alpha=-group["lr"])
        return loss

    def _momentum(self, p, group):
        """The step of SGD with weight decay and Nesterov momentum."""
        gradient = p.grad.add(p, alpha=group["weight_decay"]) if group["weight_decay"] else p.grad
        if "momentum_buffer" not in self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffer = self.state[p]["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        return gradient.add(buffer, alpha=group["momentum"])


def _orthogonal(updates):
    """The updates of convolutions made orthogonal. Those of one shape at once: small products cost mostly the call."""
    same_shape = defaultdict(list)
    for p, update in updates:
        same_shape[p.shape].append((p, update))
    for shape, pairs in same_shape.items():
        matrices = orthogonalize(torch.stack([update.flatten(1) for _, update in pairs]))
        rows, columns = matrices.shape[1:]
        # a tall matrix of unit singular values changes each output less than a wide one
        matrices = matrices * max(1, rows / columns) ** 0.5
        yield from ((p, matrix.reshape(shape)) for (p, _), matrix in zip(pairs, matrices, strict=True))
