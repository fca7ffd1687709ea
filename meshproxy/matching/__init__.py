"""Conditions on requests and connections that configurations write as trees of their own."""
