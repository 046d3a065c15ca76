"""The problems of reasoning-gym, as a task. Nothing in this room imports torch, and only `families` that package."""
