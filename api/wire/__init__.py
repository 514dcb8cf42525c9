"""Requests and answers as bytes: schemas, streams, errors."""
