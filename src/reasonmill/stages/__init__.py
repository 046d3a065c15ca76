"""The kinds of stages, one file each; `context` says what a stage is given and gives back."""
