"""SplitBN as one operator: torch's batch norm of each group, or Triton kernels on a GPU."""
