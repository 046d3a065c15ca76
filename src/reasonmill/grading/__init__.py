"""Graders: what decides whether a response is right or wrong. No torch, and no task is known here."""
