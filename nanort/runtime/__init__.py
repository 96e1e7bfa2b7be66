"""Making it happen: one executor interface, and the backends that carry a Program out."""
