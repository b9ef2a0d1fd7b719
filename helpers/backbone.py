"""The small network that the chapters on segmentation and detection start from, as their papers start from ImageNet.

    from helpers.backbone import BACKBONE, Backbone
    backbone = BACKBONE.load()                    # has learnt to name objects
    backbone = Backbone()                         # the same from nothing
    c2, c3, c4, c5 = backbone.features(images)    # strides 4, 8, 16, 32 and 32, 64, 128, 256 channels

It is chapter 2's ResNet with half as many channels and one block in each stage. `./course weights backbone` trains it
to name what is on a picture: CIFAR-10's images, and the animals of the training photographs of VOC, cut out along
their boxes. It never sees a validation photograph, a mask, or where on a photograph an animal stands.
"""

from torch import nn

from helpers import train
from helpers.chapters import chapter
from helpers.data import CIFAR10_CLASSES, VOC_ANIMALS, named_pictures
from helpers.weights import Weights

CLASSES = CIFAR10_CLASSES + tuple(name for name in VOC_ANIMALS if name not in CIFAR10_CLASSES)
CHANNELS = (32, 64, 128, 256)


class Backbone(nn.Module):
    """Images (N, 3, H, W) to logits (N, 12); `features` gives the maps of the four stages on the way."""

    def __init__(self):
        super().__init__()
        resnet = chapter("02_resnet")
        self.conv1 = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = resnet.stage(resnet.BasicBlock, 32, 32, 1, 1)
        self.layer2 = resnet.stage(resnet.BasicBlock, 32, 64, 1, 2)
        self.layer3 = resnet.stage(resnet.BasicBlock, 64, 128, 1, 2)
        self.layer4 = resnet.stage(resnet.BasicBlock, 128, 256, 1, 2)
        self.fc = nn.Linear(256, len(CLASSES))
        resnet.he_initialize(self)

    def features(self, images):
        """[C2, C3, C4, C5]: (N, 32, H/4, W/4), (N, 64, H/8, W/8), (N, 128, H/16, W/16), (N, 256, H/32, W/32)."""
        c2 = self.layer1(self.maxpool(self.bn1(self.conv1(images)).relu()))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return [c2, c3, c4, self.layer4(c4)]

    def forward(self, images):
        return self.fc(self.features(images)[-1].mean((2, 3)))


def learn_names(model, data, epochs=16):
    """Train the classifier; returns its accuracies on CIFAR-10's test images and on VOC's validation animals."""
    train.fit(
        model, data, epochs=epochs, batch_size=128, lr=0.1, weight_decay=5e-4, seed=0, label="backbone",
        augment=train.Augment(shift=8, cutout=24), loss=train.CrossEntropy(label_smoothing=0.1), eval_every=2,
    )  # fmt: skip
    right = (train.predict(model, data, data.test.images).argmax(1) == data.test.targets).float()
    cifar = 10_000  # the test split holds CIFAR-10's images first
    return {"cifar10_accuracy": float(right[:cifar].mean()), "voc_accuracy": float(right[cifar:].mean())}


BACKBONE = Weights("backbone", name="named_pictures", build=Backbone, train=learn_names, data=named_pictures)
