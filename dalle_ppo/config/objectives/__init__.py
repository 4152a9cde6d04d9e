"""One file for each objective: its settings, and the defaults that suit it; may import what config may."""
