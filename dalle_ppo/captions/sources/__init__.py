"""Kinds of caption sources, one file each: `captions.source: NAME:REST` calls `load` in NAME.py here."""
