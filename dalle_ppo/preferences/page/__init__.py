"""The page on which people label pictures: who sees what next, the server, and what the browser runs."""
