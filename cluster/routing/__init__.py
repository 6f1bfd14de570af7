"""Which model takes a request, and why."""
