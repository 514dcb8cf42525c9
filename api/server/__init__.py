"""The HTTP application: origin checks, request log and metrics around the routes of all APIs."""
