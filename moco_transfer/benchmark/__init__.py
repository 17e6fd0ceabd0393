"""The benchmark: a matrix of fine-tuning runs, task x initialisation x seed, one run folder each,
that can be interrupted at any time.
"""
