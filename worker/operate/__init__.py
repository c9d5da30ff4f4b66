"""The operator's commands: one module for each, and what they share."""
