"""Labelled images: the bundled digits and folders of image files."""

from depure.data.digits import digits
from depure.data.folder import image_folder, list_images, read_image, write_image
from depure.data.images import Images

__all__ = ["Images", "digits", "image_folder", "list_images", "read_image", "write_image"]
