"""Policy: who switches with whom, when, for how long, and how it went. Pure: no host is asked here."""
