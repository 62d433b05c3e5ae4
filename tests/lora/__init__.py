"""Tests of `deltareg.lora`."""
