"""Solutions with visible steps, made by program, that a small model can learn an algorithm from. No torch here."""
