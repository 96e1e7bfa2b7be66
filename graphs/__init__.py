"""Builders of whole graphs, imported as nanort.graphs."""
