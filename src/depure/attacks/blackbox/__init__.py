"""Attacks that ask for answers only."""
