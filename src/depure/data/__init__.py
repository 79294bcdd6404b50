"""Labelled images: the bundled digits, CIFAR, and folders of image files."""

from depure.data.cifar import cifar, is_cifar
from depure.data.digits import digits
from depure.data.folder import image_folder, list_images, read_image, write_image
from depure.data.images import Images

__all__ = [
    "Images",
    "cifar",
    "digits",
    "image_folder",
    "is_cifar",
    "list_images",
    "read_image",
    "write_image",
]
