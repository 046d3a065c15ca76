"""Backends: each makes samplers, learners and reward models out of what it has."""
