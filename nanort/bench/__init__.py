"""Workloads served, and what that came to."""
