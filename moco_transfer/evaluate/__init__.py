"""Average precision:

VOC's as Detectron2 computes it, COCO's as pycocotools computes it; predictions on disk.
"""
