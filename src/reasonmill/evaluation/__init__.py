"""What the commands `eval` and `compare` do: evaluations of any model, and what sets them apart."""
