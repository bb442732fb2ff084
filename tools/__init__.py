"""Recipes that make files which are shipped with the project."""
