"""Learns a reward model from the answers of a store: data, network, quality, report."""
