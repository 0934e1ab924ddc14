"""Shipped recipes: configuration files that are found by their name alone."""
