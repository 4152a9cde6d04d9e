"""Converts trained Keras detectors into heads."""
