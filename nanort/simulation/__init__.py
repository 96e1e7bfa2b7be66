"""How nodes fare together."""
