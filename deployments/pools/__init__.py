"""Pools of experts as Ray Serve deployments, and the one that decides how many replicas each of them has."""
