"""The embedded detection engine: what Detectron2 computes, on torchvision's operators, from the
same configs and weights.
"""
