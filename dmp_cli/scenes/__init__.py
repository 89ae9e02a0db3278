"""Procedural scenes with exact truth for every task: lit rooms and yards, traced with numpy."""
