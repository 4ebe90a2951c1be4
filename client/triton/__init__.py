"""What reaches Triton: the client, and what stands before it (cache, admission, readiness)."""
