"""Two-view batches for pre-training: drawn parameters, crops, colours on the device."""
