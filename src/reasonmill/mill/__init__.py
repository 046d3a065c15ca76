"""The mill runs a recipe's stages, shows how far they are and reports what came out."""
