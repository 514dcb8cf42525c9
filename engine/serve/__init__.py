"""Serving: models loaded on demand, and answers to concurrent requests."""
