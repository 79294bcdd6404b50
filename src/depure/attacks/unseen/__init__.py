"""Attacks beyond norms of the pixel change."""
