"""What is launched: the flat list that every executor interprets and every checker judges."""
