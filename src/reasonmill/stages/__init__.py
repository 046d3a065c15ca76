"""The kinds of stages, one file each; `reasonmill.stage` says what a stage is given and gives back."""
