"""What the server speaks under /v2/."""
