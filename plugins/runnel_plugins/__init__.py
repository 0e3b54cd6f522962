"""The plugins that come with Runnel, one stage per file, found by entry points like any other plugin."""
