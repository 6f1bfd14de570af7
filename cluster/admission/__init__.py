"""Who of those that ask for a model goes in, who waits and who is refused."""
