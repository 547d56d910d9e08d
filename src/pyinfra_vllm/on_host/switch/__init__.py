"""The transaction: switching, going back, recovering, measuring the noise."""
