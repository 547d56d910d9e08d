"""Bringing a release onto a host before anything is switched: files, runtimes, what vLLM says of it."""
