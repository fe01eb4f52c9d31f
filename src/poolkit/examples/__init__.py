"""Worked examples that the command line runs when no model is given."""
