"""Measuring a server: load, prompts, questions, likelihoods, and the record of it."""
