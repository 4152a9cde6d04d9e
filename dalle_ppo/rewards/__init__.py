"""Rewards: callables that score images against their captions."""
