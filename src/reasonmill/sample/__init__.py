"""Samplers: requests in, completions out as they finish."""
