"""What every step needs and that knows no images: processes, files, logs, metrics, seeds, the
environment.
"""
