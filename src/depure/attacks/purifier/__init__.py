"""Attacks that know the purifier: substitutes for it, and losses on what it passes through."""
