"""Comparisons over several tables: initialisations over many tasks, and over amounts of labels."""
