"""pyinfra operations: each brings one part of a host to what was declared, and says so in a dry run."""
