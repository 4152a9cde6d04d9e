"""Helpers for all other folders: atomic writes, new folders, settings checks. Imports no other folder."""
