"""Images: the one way from a file, a Pillow image or an array to a tensor, for data sources and for what a person gives."""

from ldmkit.images.pixels import to_tensor
from ldmkit.images.reader import image_of, image_tensor, open_image, read_field

__all__ = ["image_of", "image_tensor", "open_image", "read_field", "to_tensor"]
