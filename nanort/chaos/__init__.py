"""The deterministic world: whole workloads served on a simulated device with faults, all of it drawn from one seed."""
