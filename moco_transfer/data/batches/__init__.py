"""Transforms, samplers and loaders of fine-tuning."""
