"""The small networks of all chapters, trained once, so that one picture can be shown to every one of them.

    from helpers.zoo import ZOO, to_input
    member = ZOO["CBAM"]
    model = member.load()
    heat = grad_cam(model, member.layer, to_input(member, photographs), lambda out: member.score(out, labels))

Ten classifiers have one recipe and one task, naming what is on a picture of 32 px. They take photographs of any size.
The other four have their chapter's task and recipe, on the shared backbone. `./course weights zoo` trains them all. The
networks themselves stand in their chapters; nothing is defined here but how they are put together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from helpers import train
from helpers.backbone import BACKBONE, CLASSES, named_pictures
from helpers.chapters import chapter
from helpers.data import VOC_ANIMALS, Dataset, Provenance, Split, voc_animals, with_masks
from helpers.weights import Weights

EPOCHS = 4
NAMES = torch.tensor([CLASSES.index(name) for name in VOC_ANIMALS])  # an animal's place in CLASSES


# --------------------------------------------------------------------------------------- the ten classifiers


def small_pictures():
    """`named_pictures` at CIFAR-10's own size."""
    return named_pictures(side=32)


def learn_names(model, data, epochs=EPOCHS):
    """Train a classifier; returns its accuracies on CIFAR-10's test images and on VOC's validation animals."""
    train.fit(
        model, data, epochs=epochs, batch_size=128, lr=0.1, weight_decay=5e-4, seed=0, eval_every=epochs,
    )  # fmt: skip
    right = (train.predict(model, data, data.test.images).argmax(1) == data.test.targets).float()
    cifar = 10_000  # the test split holds CIFAR-10's images first
    return {"cifar10_accuracy": float(right[:cifar].mean()), "voc_accuracy": float(right[cifar:].mean())}


def learn_frequencies(model, data):
    """The same for a network that reads coefficients, whose statistics come from these images."""
    frequency = chapter("10_frequency_domain")
    model.input = frequency.FrequencyInput(data, list(range(48)), side=4)
    return learn_names(model, data)


def vgg():
    ours = chapter("01_vgg")
    return ours.VGG(ours.SMALL["D"], len(CLASSES), hidden=128, size=32, dropout=0, batch_norm=True)


def resnet():
    return chapter("02_resnet").CifarResNet(8, classes=len(CLASSES))


def densenet():
    return chapter("03_densenet").cifar_densenet(16, 12, classes=len(CLASSES))


def efficientnet():
    ours = chapter("04_efficientnet")
    return ours.EfficientNet(1.0, 2.0, ours.TINY, len(CLASSES), stem=8, stem_stride=1, head=128, divisor=2,
                             dropout=0.0, drop=0.0)  # fmt: skip


def mobilenet():
    ours = chapter("05_mobilenet")
    return ours.MobileNet(ours.SMALL, classes=len(CLASSES))


def senet():
    return chapter("06_senet").SECifarResNet(8, r=4, classes=len(CLASSES))


def cbam():
    ours = chapter("07_cbam")
    return ours.attend(chapter("02_resnet").CifarResNet(8, classes=len(CLASSES)), ours.unit("channel first"))


def wide_resnet():
    return chapter("08_feature_distillation").WideResNet(10, 1, classes=len(CLASSES))


def assembled():
    return chapter("09_assembled_cnn").AssembledCifarResNet(
        8, width=8, classes=len(CLASSES), d=True, attention="SK", blur=True
    )


def frequency():
    grey = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)  # until the statistics of the images are known
    data = Dataset(Split(grey, None), Split(grey, None), CLASSES, Provenance("noise", False, ""))
    return chapter("10_frequency_domain").small_network(data, channels=48, side=4, width=32)


# ------------------------------------------------------------- the four that say where, with their chapters' recipes


def unet():
    return chapter("11_unet").AnimalUNet(BACKBONE.load())


def masked_64():
    return with_masks(voc_animals(size=64))


def learn_unet(model, data):
    history = chapter("11_unet").train_animals(model, data, epochs=6)
    return {"mean_iou": history.last("iou")}


def fcn():
    return chapter("12_fcn").SmallFCN(BACKBONE.load(), stride=8)


def masked_128():
    return with_masks(voc_animals(size=128))


def learn_fcn(model, data):
    history = chapter("12_fcn").train_masks(model, data, epochs=4)
    return {"mean_iou": history.last("mean_iou")}


def fpn():
    return chapter("13_fpn").build()


def scenes():
    return chapter("13_fpn").scenes()


def learn_fpn(model, data):
    history = chapter("13_fpn").train_proposals(model, data, epochs=3)
    return {"average_recall": history.last("AR100 all")}


def yolo():
    return chapter("14_yolo").small_yolo(BACKBONE.load())


def boxed_128():
    return chapter("14_yolo").photographs(size=128)


def learn_yolo(model, data):
    ours = chapter("14_yolo")
    history = ours.train_detector(model, data, epochs=26, loss=ours.YoloLoss())
    return {"mAP": history.last("mAP")}


# ------------------------------------------------------------------------------------------ what Grad-CAM is asked


def logit_of(outputs, labels):
    """Classifiers: the logit of the animal, (N,)."""
    return outputs.gather(1, NAMES[labels].to(outputs.device)[:, None])[:, 0]


def mean_logit_of(outputs, labels):
    """Segmentation: the mean logit of the animal where it is the answer, or everywhere if it is nowhere, (N,)."""
    index = torch.arange(len(labels))
    called = outputs.argmax(1) == (labels + 1).to(outputs.device)[:, None, None]
    called = called | ~called.flatten(1).any(1)[:, None, None]
    return (outputs[index, labels + 1] * called).sum((1, 2)) / called.sum((1, 2))


def best_objectness(outputs, labels):
    """Proposals: the largest objectness, whatever the animal, (N,)."""
    return outputs[..., 0].amax(1)


def best_detection_of(outputs, labels):
    """YOLO: the logarithm of the largest score (confidence times probability) of the animal, (N,)."""
    fives, classes = outputs.flatten(1, 2).split([10, len(VOC_ANIMALS)], -1)
    confidence = F.logsigmoid(fives[..., 4::5]).amax(-1)
    named = classes.log_softmax(-1)[torch.arange(len(labels)), :, labels]
    return (confidence + named).amax(1)


# ---------------------------------------------------------------------------------------------------- the list


@dataclass(frozen=True)
class Member:
    """A trained network: where it comes from, and how Grad-CAM asks it.

    layer: whose maps are weighed. size: side of the photographs it gets, in px. score: (outputs, labels) to the
    number per image that is explained; labels are positions in VOC_ANIMALS.
    """

    chapter: str
    weights: Weights
    layer: str
    size: int
    score: Callable

    def load(self):
        """The network in evaluation mode, for images of any size."""
        model = self.weights.load()
        if self.chapter == "01_vgg":  # its linear layers fix the size; chapter 1's dense evaluation does not
            dense = chapter("01_vgg").fully_convolutional(model)
            model = nn.Sequential(*dense, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        return model


def _classifier(chapter_name, build, layer, train=learn_names):
    made = Weights("zoo", name=build.__name__, build=build, train=train, data=small_pictures)
    return Member(chapter_name, made, layer, 64, logit_of)


def _with_own_task(chapter_name, build, train, data, layer, size, score):
    return Member(chapter_name, Weights("zoo", build.__name__, build, train, data), layer, size, score)


ZOO = {
    "VGG": _classifier("01_vgg", vgg, "28"),
    "ResNet": _classifier("02_resnet", resnet, "layer3"),
    "DenseNet": _classifier("03_densenet", densenet, "features"),
    "EfficientNet": _classifier("04_efficientnet", efficientnet, "stages.2"),
    "MobileNet": _classifier("05_mobilenet", mobilenet, "blocks"),
    "SENet": _classifier("06_senet", senet, "layer3"),
    "CBAM": _classifier("07_cbam", cbam, "layer3"),
    "Wide ResNet": _classifier("08_feature_distillation", wide_resnet, "group3"),
    "Assembled-CNN": _classifier("09_assembled_cnn", assembled, "layer3"),
    "Frequency domain": _classifier("10_frequency_domain", frequency, "body.stages.1", learn_frequencies),
    "U-Net": _with_own_task("11_unet", unet, learn_unet, masked_64, "merge.1", 64, mean_logit_of),
    "FCN": _with_own_task("12_fcn", fcn, learn_fcn, masked_128, "backbone.layer3", 128, mean_logit_of),
    "FPN": _with_own_task("13_fpn", fpn, learn_fpn, scenes, "backbone.layer3", 128, best_objectness),
    "YOLO": _with_own_task("14_yolo", yolo, learn_yolo, boxed_128, "features", 128, best_detection_of),
}
WEIGHTS = [member.weights for member in ZOO.values()]


def to_input(member, data, images):
    """Photographs uint8 (N, 3, H, W) as the member takes them: its size, normalised by `data`."""
    if images.shape[-1] != member.size:
        images = F.interpolate(images.float(), member.size, mode="bilinear", antialias=True).round().to(torch.uint8)
    return data.normalize(images)
