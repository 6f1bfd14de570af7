"""The control plane: pure decisions. Imports neither ray, vllm nor torch."""
