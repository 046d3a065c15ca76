"""Attacks on graders: what a grader lets pass and should not, and the reverse."""
