"""Published sets of problems, each with the prompt and the answer's place that its scores are published with."""
