"""Widgets; they hold no data of a trace, they show what they are given."""
