"""Rewards that a rule decides, one file each; `rule` says what a rule is, and `registry` finds them."""
