"""The 22 silent failures seen in public code: each is built here, and refused by name or impossible."""
