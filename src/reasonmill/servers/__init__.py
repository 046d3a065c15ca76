"""Servers of models with an OpenAI-compatible interface: how they are asked, and how they are named in settings."""
