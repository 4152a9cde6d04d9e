"""The report page of a run: tables, plots, pictures; may import evaluation and the packages below it."""
