"""Operators with their demands, imported as nanort.ops."""
