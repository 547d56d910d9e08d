"""Flags for a service: the resolver, and the search for better ones."""
