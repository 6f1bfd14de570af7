"""Engines: what computes tokens. One protocol, several implementations."""
