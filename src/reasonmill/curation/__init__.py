"""From samples to a dataset: filters, rewriting, deduplication, decontamination. Pure functions, without torch."""
