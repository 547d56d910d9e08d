"""Status table, history and HTML report."""
