"""What runs within the jail. Standard library only; it knows nothing of the package, which the jail can't see."""
