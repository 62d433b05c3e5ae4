"""Real servers for tests: each starts on a free port of loopback in a directory of its own, and leaves nothing behind.

Where the program is not installed, the test is skipped; in CI it fails.
"""
