"""The rigid problem of the field, and who solves it."""
