"""TraceLens for PyTorch."""
