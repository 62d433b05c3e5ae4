"""The shared registry."""
