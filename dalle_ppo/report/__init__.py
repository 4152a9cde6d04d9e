"""The page a run leaves behind: tables, plots, pictures; may import evaluation and below."""
