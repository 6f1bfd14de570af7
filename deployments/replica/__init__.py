"""Replicas: Ray Serve actors, each around one engine."""
