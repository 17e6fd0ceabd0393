"""Annotated data sets: COCO and VOC readers, the catalogue, checks, label subsets."""
