"""Evaluators: VOC's AP as Detectron2 computes it, COCO's and LVIS's by hotcoco; predictions."""
