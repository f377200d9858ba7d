"""What a test run means: metrics with intervals, the authors' logs, verdicts and the report."""
