"""The chat with dials, as a Textual application (the `tui` extra). Nothing here computes: models speak in a thread."""
