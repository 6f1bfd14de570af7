"""The experts of sparse models: how tokens spread over them, which are hot, and what to do about it."""
