"""Plugins for other programs; each is imported only by the program that it plugs into."""
