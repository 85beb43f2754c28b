"""The HTTP edge: requests to batches and queries, verdicts and pages to answers."""
