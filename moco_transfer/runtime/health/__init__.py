"""What is seen of a run while it works, or when it hangs."""
