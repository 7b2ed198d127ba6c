"""The playground's page, as files, and what it needs to know of the served experiment."""
