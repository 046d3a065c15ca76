"""What this machine can do, looked at with what runs use themselves, and how to change what it can't."""
