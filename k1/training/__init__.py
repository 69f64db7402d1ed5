"""One stage: its trainer, its evaluation, and how it resumes after a stop."""
