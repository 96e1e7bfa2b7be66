"""The event table that plans and runs fill, its analyses and its exporters."""
