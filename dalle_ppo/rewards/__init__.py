"""Rewards that score images, one file each; may import models and below."""
