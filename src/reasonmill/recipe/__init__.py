"""Recipes: one TOML file is a whole pipeline, checked before anything runs.

`load` turns the text into checked settings, `reference` finds what they refer to, `graph` connects the stages and
computes their keys, and `cycle` repeats them for further generations.
"""
