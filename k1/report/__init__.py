"""K-1 and baseline compared: metrics, criteria, tables, plots, generated text."""
