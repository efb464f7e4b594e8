"""The other side of a comparison: small programs that run inside a peer's own environment and know nothing of caseback."""
