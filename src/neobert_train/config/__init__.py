"""Typed configuration: what can be set, which values are allowed, and what follows from them."""
