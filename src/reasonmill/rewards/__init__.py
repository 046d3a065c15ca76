"""Rewards: what a rollout is worth, and how its parts are combined."""
