"""Stages in sequence, stepped together."""
