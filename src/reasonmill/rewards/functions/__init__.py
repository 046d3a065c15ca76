"""Reward functions as other projects have them, run unedited: what they take is filled by the names of parameters."""
