"""The HTTP application, its guard, log and metrics."""
