"""Scenarios, drivers and reports that put load on any OpenAI-compatible endpoint."""
