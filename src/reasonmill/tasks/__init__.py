"""Problems whose answers a program can check. Nothing in this room imports torch."""
