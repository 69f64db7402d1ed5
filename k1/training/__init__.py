"""One stage: its training loop, its evaluation, and how it goes on after a stop."""
