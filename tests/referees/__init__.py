"""Programs of others that read the traces which nanort writes, each in an environment of its own: `make referees`."""
