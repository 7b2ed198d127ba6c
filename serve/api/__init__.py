"""The HTTP layer: one FastAPI application, the same under a test client and under Ray Serve."""
