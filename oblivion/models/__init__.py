"""Base models and the adapters attached to them."""

from oblivion.registry import Registry

models = Registry("model", {"tiny": "oblivion.models.tiny_recipe:describe"})
get = models.get
names = models.names
