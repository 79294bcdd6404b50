"""Labelled images: the bundled digits, CIFAR, and folders of image files."""

from depure.data.cifar import cifar, is_cifar
from depure.data.class_file import read_classes
from depure.data.classes import match_classes
from depure.data.digits import digits
from depure.data.folder import image_folder, read_image, write_image
from depure.data.images import Images
from depure.data.layout import list_images

__all__ = [
    "Images",
    "cifar",
    "digits",
    "image_folder",
    "is_cifar",
    "list_images",
    "match_classes",
    "read_classes",
    "read_image",
    "write_image",
]
