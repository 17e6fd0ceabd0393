"""Evaluators (VOC's AP as Detectron2 computes it, COCO's as pycocotools does), and predictions."""
