"""Who may call, how much, and what they used: keys on disk, their limits in memory, their usage in SQLite."""
