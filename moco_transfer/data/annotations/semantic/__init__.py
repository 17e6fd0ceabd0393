"""Semantic segmentation: pairs of an image and a label image, which has a class for each pixel."""
