"""The HTML page and the plots."""
