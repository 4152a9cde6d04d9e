"""One file for each objective: what it needs and its loss. Its settings are in `config/objectives/`."""
