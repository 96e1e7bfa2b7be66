"""Making it happen: one interface, several backends."""
