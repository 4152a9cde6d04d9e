"""The settings of each reward term, one file per term, without torch; may import config.term and base."""
