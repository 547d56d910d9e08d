"""Everything a person looks at: the status table, the history and the HTML report."""
