"""What is launched: a schedule as a flat list of launches, copies, records and waits."""
