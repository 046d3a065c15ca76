"""Rewards that a rule decides, one file each."""
