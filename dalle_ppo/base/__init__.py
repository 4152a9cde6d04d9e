"""What everything else may use: atomic writes, new folders, checks of settings; imports no other room."""
