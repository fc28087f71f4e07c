"""The commands; the only place that prints, parses argv and exits."""
