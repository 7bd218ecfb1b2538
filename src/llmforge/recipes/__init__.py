"""Recipes: the commands of a whole project in one YAML file, and running them."""
