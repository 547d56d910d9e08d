"""pyinfra operations: each brings one part of a host to its declaration, and says so in a dry run."""
