"""Sequences as they run: one alone, or many in one batch."""
