"""Figures: size, speed and memory, beside the peers' in the same run."""
