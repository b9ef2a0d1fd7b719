"""How far one unit of the last map sees, followed through a pass."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import inspect


class FieldMode(TorchDispatchMode):
    """Follows the receptive field and the jump, in pixels, of every map through a pass; `widest` is the largest field.

    The map that the first convolution takes is the input; `pixel` is its field and jump. Of several paths the widest
    counts. A number that the whole map went into, such as a gate, has no field, and a map that was enlarged has none
    either: there the field would depend on the position.
    """

    def __init__(self, pixel=(1, 1)):
        super().__init__()
        self.pixel, self.widest = pixel, 0

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        made = function(*arguments, **(settings or {}))
        if not self.widest and function.overloadpacket is torch.ops.aten.convolution:
            arguments[0].seen = self.pixel
        inputs = [each for each in _flat(arguments) if hasattr(each, "seen")]
        if not inputs:
            return made
        given = max(inputs, key=lambda each: each.seen)
        (field, jump), moves = given.seen, True
        match function.overloadpacket:
            case torch.ops.aten.convolution:
                weight, (_, stride, _, dilation, enlarges) = arguments[1], arguments[2:7]
                if enlarges:
                    return made
                field += (weight.shape[-1] - 1) * dilation[-1] * jump
                jump *= stride[-1]
            case torch.ops.aten.max_pool2d_with_indices | torch.ops.aten.avg_pool2d:
                kernel = arguments[1]
                stride = arguments[2] if len(arguments) > 2 and arguments[2] else kernel
                field += (kernel[-1] - 1) * jump
                jump *= stride[-1]
            case torch.ops.aten.slice:
                if arguments[1] in (3, -1) and len(arguments) == 5:
                    jump *= arguments[4]
            case torch.ops.aten.constant_pad_nd | torch.ops.aten.reflection_pad2d | torch.ops.aten.replication_pad2d:
                pass
            case _:
                moves = False
        for each in _flat([made]):
            if each.ndim >= 4 and (moves or each.shape[-1] == given.shape[-1]):
                each.seen = (field, jump)
                self.widest = max(self.widest, field)
        return made


def _flat(values):
    """The tensors among values and in the lists and tuples among them."""
    for value in values:
        yield from (each for each in (value if isinstance(value, (list, tuple)) else [value]) if torch.is_tensor(each))


def macs_and_field(model, input_shape, pixel=(1, 1)):
    """Multiply-adds of one image, and the side in pixels of what one unit of the last map sees, in one pass.

    Where maps are enlarged again, it is the side for the coarsest map. pixel: see FieldMode.
    """
    with FieldMode(pixel) as mode:
        return inspect.count_macs(model, input_shape), mode.widest
