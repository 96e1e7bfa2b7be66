"""Serving over HTTP, by OpenAI's API."""
