"""Kinds of caption sources, one file each: `captions.source: NAME:REST` calls `load` of NAME.py here."""
