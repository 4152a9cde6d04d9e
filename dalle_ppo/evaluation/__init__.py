"""Compares policy and reference: sides, statistics, verdict; may import runs and the packages below it."""
