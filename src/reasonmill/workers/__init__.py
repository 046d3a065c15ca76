"""Processes that can be killed, for graders that may hang, take all memory or end the process that they run in."""
