"""Every ResNet of the project: builders, tensor names and shapes, pixel statistics."""
