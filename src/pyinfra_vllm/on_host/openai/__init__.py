"""Asking an OpenAI-compatible server: requests, streams of answers, deadlines."""
