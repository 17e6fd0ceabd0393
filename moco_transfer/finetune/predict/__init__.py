"""A trained detector or segmenter on images of one's own."""

from .detector import Detector, load_detector
from .images import Image, find_images, named_images
from .write import CLASSES_FILE, COCO_FILE, DETECTIONS_FILE, coco_content, predict_images

__all__ = [
    "CLASSES_FILE",
    "COCO_FILE",
    "DETECTIONS_FILE",
    "Detector",
    "Image",
    "coco_content",
    "find_images",
    "load_detector",
    "named_images",
    "predict_images",
]
