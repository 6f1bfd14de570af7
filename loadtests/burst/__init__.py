"""Traffic that concentrates on one kind of text and then moves to another, on expert pools with and without replicas by heat."""
