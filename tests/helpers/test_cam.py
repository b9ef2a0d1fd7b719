import cv2
import numpy as np
import pytest
import torch
import torchvision
from captum.attr import LayerGradCam
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from toys import small_network

from helpers import cam


def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10).eval()


def vgg():
    torch.manual_seed(0)
    return torchvision.models.vgg11_bn(num_classes=10).eval()


def images(n=3, side=64):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


CASES = [(resnet, "layer3"), (resnet, "layer4.1.conv2"), (vgg, "features.25"), (vgg, "features.21")]


@pytest.mark.parametrize(("build", "layer"), CASES)
@pytest.mark.parametrize("relu", [True, False])
def test_equals_captum(build, layer, relu):
    model, classes = build(), torch.tensor([3, 0, 7])
    theirs = LayerGradCam(model, model.get_submodule(layer)).attribute(images(), classes, relu_attributions=relu)
    ours = cam.grad_cam(model, layer, images(), classes, relu=relu)
    assert theirs.abs().max() > 0
    assert (ours - theirs[:, 0].detach()).abs().max() <= 1e-5 * theirs.abs().max()


def resized_as_theirs(maps, side):
    """What pytorch-grad-cam does after the ReLU: to [0, 1], bilinear resizing by OpenCV, to [0, 1] again."""
    resized = [cv2.resize(one.numpy(), (side, side)) for one in cam.unit_range(maps)]
    return cam.unit_range(torch.from_numpy(np.stack(resized)))


@pytest.mark.parametrize(("build", "layer"), CASES)
def test_equals_pytorch_grad_cam(build, layer):
    model, classes = build(), [3, 0, 7]
    # it asks the layer for its output after the model's in-place ReLU has run, so give it a model without
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    with GradCAM(model=model, target_layers=[model.get_submodule(layer)]) as oracle:
        theirs = torch.from_numpy(oracle(images(), [ClassifierOutputTarget(label) for label in classes]))
    ours = cam.grad_cam(model, layer, images(), torch.tensor(classes))
    assert (ours.amax((1, 2)) > 0).sum() > 1 and not torch.allclose(theirs[0], theirs[1], atol=0.1)
    assert (resized_as_theirs(ours, 64) - theirs).abs().max() < 1e-5
    # and our own resizing is the same interpolation
    sized = cam.unit_range(cam.grad_cam(model, layer, images(), torch.tensor(classes), size=(64, 64)))
    assert (sized - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("layer", ["0", "1"])
def test_a_relu_in_place_after_the_layer_changes_nothing(layer):
    plain, in_place = small_network(), small_network()
    plain[2].inplace = False
    expected = cam.grad_cam(plain, layer, images(2, 8), 1, relu=False)
    assert torch.equal(cam.grad_cam(in_place, layer, images(2, 8), 1, relu=False), expected)
    assert (cam.feature_map(in_place, layer, images(2, 8))[0] < 0).any()


def test_by_hand():
    """For global average pooling and a linear layer, Grad-CAM is the class's weights over the map (CAM)."""
    model = small_network()
    activation = model[:3].eval()(images(2, 6)).detach()
    maps = torch.einsum("k,nkhw->nhw", model[6].weight[1], activation).detach() / 36
    assert torch.allclose(cam.grad_cam(model, "2", images(2, 6), 1, relu=False), maps, atol=1e-6)
    assert torch.allclose(cam.grad_cam(model, "2", images(2, 6), 1), maps.clamp_min(0), atol=1e-6)
    assert (maps < 0).any() and (maps > 0).any()


def test_the_four_ways_to_name_a_target():
    model = small_network(classes=4)
    predicted = model.eval()(images(5, 8)).argmax(1)
    default = cam.grad_cam(model, "2", images(5, 8), relu=False)
    assert torch.equal(default, cam.grad_cam(model, "2", images(5, 8), predicted, relu=False))
    assert torch.equal(default, cam.grad_cam(model, "2", images(5, 8), predicted.tolist(), relu=False))
    one = cam.grad_cam(model, "2", images(5, 8), 3, relu=False)
    assert torch.equal(one, cam.grad_cam(model, "2", images(5, 8), lambda outputs: outputs[:, 3], relu=False))
    assert not torch.equal(one, cam.grad_cam(model, "2", images(5, 8), 2, relu=False))


def test_frozen_weights_and_no_grad():
    model = small_network()
    expected = cam.grad_cam(model, "2", images(2, 8), 1)
    model.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(cam.grad_cam(model, "2", images(2, 8), 1), expected)


def test_leaves_no_gradient_and_no_hook():
    model = small_network()
    batch = images(2, 8)
    maps = cam.grad_cam(model, "2", batch, 1)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not batch.requires_grad and not maps.requires_grad
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_restored_and_evaluation_is_used(training):
    model = small_network(dropout=0.9).train(training)
    statistics = model[1].running_mean.clone()
    first = cam.grad_cam(model, "2", images(2, 8), 1)
    assert torch.equal(first, cam.grad_cam(model, "2", images(2, 8), 1))
    assert model.training is training and torch.equal(model[1].running_mean, statistics)
    with pytest.raises(RuntimeError):
        cam.grad_cam(model, "2", torch.zeros(1, 4, 8, 8), 1)  # four channels: the pass fails
    assert model.training is training and not model[2]._forward_hooks


def test_bad_layers():
    model = small_network()
    with pytest.raises(KeyError, match="'conv9'.*convolutions are: 0"):
        cam.grad_cam(model, "conv9", images(1, 8))
    with pytest.raises(KeyError, match="no layer named ''"):
        cam.grad_cam(model, "", images(1, 8))
    with pytest.raises(KeyError, match="not part of this model"):
        cam.grad_cam(model, nn.Conv2d(3, 8, 3), images(1, 8))
    with pytest.raises(ValueError, match=r"'6' gives \(1, 2\), not a feature map"):
        cam.grad_cam(model, "6", images(1, 8))
    assert torch.equal(cam.grad_cam(model, model[2], images(1, 8)), cam.grad_cam(model, "2", images(1, 8)))


def test_a_layer_that_runs_twice_or_never():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.spare = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3)

        def forward(self, x):
            return self.conv(self.conv(x)).mean((2, 3))

    with pytest.raises(ValueError, match="ran 2 times"):
        cam.grad_cam(Shared(), "conv", images(1, 8))
    with pytest.raises(ValueError, match="ran 0 times"):
        cam.grad_cam(Shared(), "spare", images(1, 8))


@pytest.mark.parametrize("target", [2, -1, [0, 5]])
def test_a_class_that_does_not_exist(target):
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        cam.grad_cam(small_network(), "2", images(2, 8), target)


def test_unit_range():
    maps = torch.stack([torch.tensor([[1.0, 3.0], [2.0, 5.0]]), torch.full((2, 2), 7.0), torch.zeros(2, 2)])
    scaled = cam.unit_range(maps)
    assert torch.equal(scaled[0], torch.tensor([[0.0, 0.5], [0.25, 1.0]]))
    assert torch.equal(scaled[1:], torch.zeros(2, 2, 2))
    assert torch.equal(cam.unit_range(1e-30 * maps)[0], scaled[0])


# ---------------------------------------------------------------------------------------- modes of autograd, outputs


def test_inference_mode_of_the_caller_changes_nothing():
    model = small_network()
    expected = cam.grad_cam(model, "2", images(2, 8), 1)
    with torch.inference_mode():
        maps = cam.grad_cam(model, "2", images(2, 8), 1)
        _, outputs = cam.feature_map(model, "2", images(2, 8))
    assert torch.equal(maps, expected) and not maps.is_inference() and not outputs.is_inference()


def test_a_network_from_inference_mode_is_refused():
    with torch.inference_mode():
        model = small_network()
    with pytest.raises(ValueError, match="built under torch.inference_mode"):
        cam.grad_cam(model, "2", images(2, 8), 1)


class Says(nn.Module):
    """A convolution, and an output of any form."""

    def __init__(self, form):
        super().__init__()
        self.conv, self.form = nn.Conv2d(3, 4, 3, padding=1), form

    def forward(self, x):
        return self.form(self.conv(x).relu())


FORMS = {
    "one number": (lambda maps: maps.mean((1, 2, 3)), r"gives \(2,\)"),
    "a dict": (lambda maps: {"logits": maps.mean((2, 3))}, "gives a dict"),
    "channels last": (lambda maps: maps.permute(0, 2, 3, 1), r"gives \(2, 8, 8, 4\)"),
    "a map of classes": (lambda maps: maps, r"gives \(2, 4, 8, 8\)"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("target", [None, 1])
def test_an_output_without_classes_needs_a_function_as_target(form, target):
    build, message = FORMS[form]
    with pytest.raises(ValueError, match=rf"{message}, not one logit per class.*target = a function"):
        cam.grad_cam(Says(build), "conv", images(2, 8), target)


def test_a_function_as_target_reads_any_output():
    torch.manual_seed(0)
    model = Says(FORMS["a dict"][0])
    maps = cam.grad_cam(model, "conv", images(2, 8), lambda outputs: outputs["logits"][:, 1], relu=False)
    activation = model.conv(images(2, 8))[:, 1]
    # the mean of one channel: its share of positive places, times the channel
    assert torch.allclose(maps, (activation > 0).float().mean((1, 2), keepdim=True) / 64 * activation, atol=1e-7)


def test_a_score_without_a_gradient_or_of_another_branch():
    with pytest.raises(ValueError, match="no gradient"):
        cam.grad_cam(small_network(), "2", images(2, 8), lambda outputs: outputs.argmax(1))
    with pytest.raises(ValueError, match="no gradient"):
        cam.grad_cam(small_network(), "2", images(2, 8), lambda outputs: 1.0)

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            self.seen = self.one(x)
            return self.other(x).mean((2, 3))

    with pytest.raises(ValueError, match="does not depend on this layer"):
        cam.grad_cam(Branches(), "one", images(2, 8), 1)


def test_labels_of_any_integer_type():
    model, classes = small_network(), torch.tensor([1, 0])
    expected = cam.grad_cam(model, "2", images(2, 8), classes)
    for dtype in (torch.uint8, torch.int32):
        assert torch.equal(cam.grad_cam(model, "2", images(2, 8), classes.to(dtype)), expected)
