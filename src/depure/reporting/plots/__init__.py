"""Figures of the analyses, one instrument a file, as matplotlib Figures."""
