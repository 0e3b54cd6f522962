"""Stages in a row, stepped together."""
