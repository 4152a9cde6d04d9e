"""Policy against reference: sides, statistics, verdict; may import runs and below."""
