"""Attacks that follow the gradient of a loss in a ball of a norm."""
