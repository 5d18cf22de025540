"""Reading of images, the same in training and serving.

Export copies this package beside the preprocess model that runs inside Triton. It needs only NumPy and Pillow, and its
imports are relative, because it is a package of its own there.
"""

from .image_formats import FORMAT_NAMES, FORMATS
from .image_limits import MAX_PIXELS, MIN_SIDE, Structure, TooLargeImageError, UnreadableImageError, too_large_text
from .jpeg_reduction import decoding_from_spec, reduction_of
from .pixels import (
    content_box,
    grey_values,
    is_nearly_black,
    open_image,
    pixels_from_image,
    resize_to_pixels,
    resizing_from_spec,
    structure_of,
    to_eight_bit,
)

__all__ = [
    "FORMATS",
    "FORMAT_NAMES",
    "MAX_PIXELS",
    "MIN_SIDE",
    "Structure",
    "TooLargeImageError",
    "UnreadableImageError",
    "content_box",
    "decoding_from_spec",
    "grey_values",
    "is_nearly_black",
    "open_image",
    "pixels_from_image",
    "reduction_of",
    "resize_to_pixels",
    "resizing_from_spec",
    "structure_of",
    "to_eight_bit",
    "too_large_text",
]
