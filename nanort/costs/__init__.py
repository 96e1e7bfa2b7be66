"""How long a node takes alone."""
