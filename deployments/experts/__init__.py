"""Pools of experts: processes that hold some experts of a sparse model, and the channel from an engine to them."""
