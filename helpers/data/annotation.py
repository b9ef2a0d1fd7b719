"""One annotation of PASCAL VOC: which animals stand where on a photograph, and whether people do."""

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from helpers.data.classes import VOC_ANIMALS

EDGES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Animal:
    """One object: its position in VOC_ANIMALS and its box in VOC's pixels (1-based, inclusive)."""

    label: int
    box: tuple[float, float, float, float]

    @property
    def area(self):
        left, top, right, bottom = self.box
        return (right - left + 1) * (bottom - top + 1)


@dataclass(frozen=True)
class Annotation:
    """A photograph: its animals, (width, height) in pixels where the file tells, and whether a person is on it."""

    animals: tuple[Animal, ...]
    size: tuple[int, int] | None
    person: bool = False


def read_annotation(path):
    """The Annotation in the XML file at `path`, without other classes and animals marked difficult.

    A person counts even if marked difficult.

    Raises FileNotFoundError or ValueError, with the file's name.
    """
    short = f"VOC 2012: Annotations/{path.name}"
    try:
        root = ElementTree.parse(path).getroot()
        if root.tag != "annotation":
            raise ValueError(root.tag)
        return Annotation(_animals(root), _size(root), _person(root))
    except FileNotFoundError:
        raise FileNotFoundError(f"{short} is missing, though the split lists it.") from None
    except (ElementTree.ParseError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{short} cannot be read: it is not the XML of a VOC annotation.") from error


def _text(element, place, default=None):
    """The text at `place`, stripped, or `default`. Raises TypeError when neither is there."""
    return str.strip(element.findtext(place, default))


def _animals(root):
    return tuple(
        Animal(VOC_ANIMALS.index(name), tuple(_number(thing, f"bndbox/{edge}") for edge in EDGES))
        for thing in root.findall("object")
        if (name := _text(thing, "name")) in VOC_ANIMALS and _text(thing, "difficult", "0") != "1"
    )


def _person(root):
    return any(_text(thing, "name") == "person" for thing in root.findall("object"))


def _number(element, place):
    value = float(_text(element, place))
    if not math.isfinite(value):
        raise ValueError(value)
    return value


def _size(root):
    if root.find("size") is None:
        return None
    return int(_number(root, "size/width")), int(_number(root, "size/height"))
