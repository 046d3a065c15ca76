"""Whether a model is good enough for reinforcement learning on a task, from minutes of sampling."""
