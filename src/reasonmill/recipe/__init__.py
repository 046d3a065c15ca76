"""Recipes: one TOML file is a whole pipeline, checked before anything runs.

`load` turns the text into checked settings, `reference` finds the models that they name, `graph` connects the stages
and computes their keys, and `code_digest` identifies the code that a stage runs.
"""
