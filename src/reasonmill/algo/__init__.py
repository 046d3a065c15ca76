"""Pure tensor functions: advantages, losses, log-probabilities, packing, schedules, intervals."""
