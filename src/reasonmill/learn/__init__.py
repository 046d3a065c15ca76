"""Learners: batches into weights. They know losses and gradients, and no algorithm."""
