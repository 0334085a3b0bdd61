"""Pictures from results (PNG, SVG, HTML); no model, and no torch."""
