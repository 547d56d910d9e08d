"""pyinfra facts: read-only probes of a host. They need nothing on it but python3 and never change it."""
